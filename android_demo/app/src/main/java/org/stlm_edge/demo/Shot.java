package org.stlm_edge.demo;

import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import android.graphics.Canvas;
import android.graphics.Matrix;
import android.graphics.Paint;
import android.net.Uri;
import java.io.File;
import java.io.FileNotFoundException;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.io.RandomAccessFile;
import java.nio.channels.FileChannel;
import org.stlm_edge.core.Judge;
import org.stlm_edge.core.Orientation;
import org.stlm_edge.core.Image;
import org.stlm_edge.core.ImageHeader;

/** Image from the camera or a file, as stored, with its EXIF orientation. */
final class Shot implements Judge.Shot {
    private static final long MAX_FILE_BYTES = 256_000_000;
    private static final long MAX_DECODED_PIXELS = 24_000_000; // 96 MB
    private static final int PREVIEW = 1280;

    /** Upright and scaled down for display. */
    final Bitmap preview;

    private final Image image;
    private final int orientation;

    private Shot(Image image, int orientation, Bitmap preview) {
        this.image = image;
        this.orientation = orientation;
        this.preview = preview;
    }

    @Override
    public Image image() {
        return image;
    }

    @Override
    public int orientation() {
        return orientation;
    }

    /** Makes a shot from a camera frame. */
    static Shot of(Image frame, int orientation) {
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
     * Reads a photo from storage. One of more than 24 million pixels is halved while it is decoded, to save memory; all
     * others are decoded at full size, as on the host.
     */
    static Shot read(Context context, Uri photo) throws IOException {
        File file = new File(context.getCacheDir(), "photo");
        try {
            copy(context, photo, file);
            return read(context, file);
        } finally {
            file.delete();
        }
    }

    private static Shot read(Context context, File file) throws IOException {
        ImageHeader header;
        try (RandomAccessFile opened = new RandomAccessFile(file, "r")) {
            header = ImageHeader.read(opened.getChannel().map(FileChannel.MapMode.READ_ONLY, 0, opened.length()));
        }
        BitmapFactory.Options options = BitmapImage.options();
        options.inSampleSize = 1;
        long pixels = (long) header.width * header.height;
        while (pixels / options.inSampleSize / options.inSampleSize > MAX_DECODED_PIXELS) {
            options.inSampleSize *= 2;
        }
        Bitmap bitmap = BitmapFactory.decodeFile(file.getPath(), options);
        if (bitmap == null) {
            throw new IOException(context.getString(R.string.not_an_image));
        }
        return new Shot(new BitmapImage(bitmap), header.orientation, upright(bitmap, header.orientation));
    }

    private static void copy(Context context, Uri photo, File file) throws IOException {
        try (InputStream from = open(context, photo); OutputStream to = new FileOutputStream(file)) {
            byte[] chunk = new byte[1 << 16];
            long left = MAX_FILE_BYTES;
            for (int count; (count = from.read(chunk)) >= 0; ) {
                left -= count;
                if (left < 0) {
                    throw new IOException(context.getString(R.string.too_large, MAX_FILE_BYTES / 1_000_000));
                }
                to.write(chunk, 0, count);
            }
        }
    }

    private static InputStream open(Context context, Uri photo) throws IOException {
        try {
            InputStream file = context.getContentResolver().openInputStream(photo);
            if (file != null) {
                return file;
            }
        } catch (RuntimeException refused) {
            throw new IOException(refused.getMessage());
        }
        throw new FileNotFoundException(photo.toString());
    }

    private static Bitmap upright(Bitmap bitmap, int orientation) {
        boolean sideways = Orientation.isSideways(orientation);
        float scale = Math.min(1, (float) PREVIEW / Math.max(bitmap.getWidth(), bitmap.getHeight()));
        int width = Math.max(1, Math.round(bitmap.getWidth() * scale));
        int height = Math.max(1, Math.round(bitmap.getHeight() * scale));
        Matrix turn = new Matrix();
        turn.postScale(scale, scale);
        turn.postTranslate(-width / 2f, -height / 2f);
        if (Orientation.isMirrored(orientation)) {
            turn.postScale(-1, 1);
        }
        turn.postRotate(Orientation.degrees(orientation));
        turn.postTranslate((sideways ? height : width) / 2f, (sideways ? width : height) / 2f);
        Bitmap upright = Bitmap.createBitmap(
                sideways ? height : width, sideways ? width : height, Bitmap.Config.ARGB_8888);
        bitmap.setHasAlpha(false); // alpha is ignored everywhere
        new Canvas(upright).drawBitmap(bitmap, turn, new Paint(Paint.FILTER_BITMAP_FLAG));
        return upright;
    }
}
