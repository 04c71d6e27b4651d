package org.stlm_edge.demo;

import android.graphics.Bitmap;
import android.graphics.BitmapFactory;
import java.io.IOException;
import org.stlm_edge.core.Image;

/** Adapter from an Android bitmap to the core's image. */
final class BitmapImage implements Image {
    private final Bitmap bitmap;

    BitmapImage(Bitmap bitmap) {
        this.bitmap = bitmap;
    }

    /** Decodes a golden image. */
    static Image decode(byte[] png) throws IOException {
        Bitmap bitmap = BitmapFactory.decodeByteArray(png, 0, png.length, options());
        if (bitmap == null) {
            throw new IOException("not a readable PNG");
        }
        return new BitmapImage(bitmap);
    }

    /** Returns decoder options: 8 bits per channel, pixels as stored in the file. */
    static BitmapFactory.Options options() {
        BitmapFactory.Options options = new BitmapFactory.Options();
        options.inPreferredConfig = Bitmap.Config.ARGB_8888;
        options.inScaled = false;
        options.inPremultiplied = false; // alpha is ignored, as everywhere
        return options;
    }

    @Override
    public int width() {
        return bitmap.getWidth();
    }

    @Override
    public int height() {
        return bitmap.getHeight();
    }

    @Override
    public void row(int y, int[] argb) {
        bitmap.getPixels(argb, 0, bitmap.getWidth(), 0, y, bitmap.getWidth(), 1);
    }
}
