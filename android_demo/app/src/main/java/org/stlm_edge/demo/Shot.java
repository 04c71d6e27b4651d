package org.stlm_edge.demo;

import android.content.ContentResolver;
import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.graphics.Canvas;
import android.graphics.Matrix;
import android.graphics.Paint;
import android.media.ExifInterface;
import android.net.Uri;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import org.stlm_edge.core.Picture;

/** A picture from the camera or a file, as it lies, and the EXIF orientation that turns it upright. */
final class Shot {
    private static final long MAX_PIXELS = 100_000_000;
    private static final long MAX_DECODED_PIXELS = 24_000_000; // 96 MB
    private static final int PREVIEW = 1280;

    final Picture picture;
    final int orientation;
    /** Upright, small enough to show. */
    final Bitmap preview;

    private Shot(Picture picture, int orientation, Bitmap preview) {
        this.picture = picture;
        this.orientation = orientation;
        this.preview = preview;
    }

    /** A camera frame. */
    static Shot of(Picture frame, int orientation) {
        int[] pixels = new int[frame.width() * frame.height()];
        int[] row = new int[frame.width()];
        for (int y = 0; y < frame.height(); y++) {
            frame.row(y, row);
            System.arraycopy(row, 0, pixels, y * row.length, row.length);
        }
        Bitmap bitmap = Bitmap.createBitmap(pixels, frame.width(), frame.height(), Bitmap.Config.ARGB_8888);
        return new Shot(frame, orientation, upright(bitmap, orientation));
    }

    /**
     * A photo from storage. One of more than 24 million pixels is halved while it is decoded, which the memory of a
     * phone asks for; every other one is judged pixel by pixel as on a desk.
     */
    static Shot read(Context context, Uri photo) throws IOException {
        BitmapFactory.Options header = new BitmapFactory.Options();
        header.inJustDecodeBounds = true;
        decode(context, photo, header);
        long pixels = (long) header.outWidth * header.outHeight;
        if (header.outWidth < 1 || header.outHeight < 1) {
            throw new IOException(context.getString(R.string.not_a_picture));
        }
        if (pixels > MAX_PIXELS) {
            throw new IOException(context.getString(R.string.too_large, header.outWidth, header.outHeight));
        }
        BitmapFactory.Options options = BitmapPicture.options();
        options.inSampleSize = 1;
        while (pixels / options.inSampleSize / options.inSampleSize > MAX_DECODED_PIXELS) {
            options.inSampleSize *= 2;
        }
        int orientation;
        try (InputStream file = open(context.getContentResolver(), photo)) {
            orientation = new ExifInterface(file).getAttributeInt(ExifInterface.TAG_ORIENTATION, 1);
        } catch (IOException none) {
            orientation = 1; // a format without EXIF
        }
        Bitmap bitmap = decode(context, photo, options);
        if (bitmap == null) {
            throw new IOException(context.getString(R.string.not_a_picture));
        }
        return new Shot(new BitmapPicture(bitmap), orientation, upright(bitmap, orientation));
    }

    private static Bitmap decode(Context context, Uri photo, BitmapFactory.Options options) throws IOException {
        try (InputStream file = open(context.getContentResolver(), photo)) {
            return BitmapFactory.decodeStream(file, null, options);
        }
    }

    private static InputStream open(ContentResolver resolver, Uri photo) throws IOException {
        try {
            InputStream file = resolver.openInputStream(photo);
            if (file != null) {
                return file;
            }
        } catch (RuntimeException refused) {
            throw new IOException(refused.getMessage());
        }
        throw new FileNotFoundException(photo.toString());
    }

    private static Bitmap upright(Bitmap bitmap, int orientation) {
        boolean sideways = orientation >= 5 && orientation <= 8;
        float scale = Math.min(1, (float) PREVIEW / Math.max(bitmap.getWidth(), bitmap.getHeight()));
        int width = Math.max(1, Math.round(bitmap.getWidth() * scale));
        int height = Math.max(1, Math.round(bitmap.getHeight() * scale));
        Matrix turn = new Matrix();
        turn.postScale(scale, scale);
        turn.postTranslate(-width / 2f, -height / 2f);
        if (orientation == 2 || orientation == 4 || orientation == 5 || orientation == 7) {
            turn.postScale(-1, 1);
        }
        int[] degrees = {0, 0, 0, 180, 180, 270, 90, 90, 270};
        turn.postRotate(orientation >= 1 && orientation <= 8 ? degrees[orientation] : 0);
        turn.postTranslate((sideways ? height : width) / 2f, (sideways ? width : height) / 2f);
        Bitmap upright = Bitmap.createBitmap(
                sideways ? height : width, sideways ? width : height, Bitmap.Config.ARGB_8888);
        bitmap.setHasAlpha(false); // ignored, as everywhere
        new Canvas(upright).drawBitmap(bitmap, turn, new Paint(Paint.FILTER_BITMAP_FLAG));
        return upright;
    }
}
