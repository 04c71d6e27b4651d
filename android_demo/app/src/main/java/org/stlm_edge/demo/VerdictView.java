package org.stlm_edge.demo;

import android.content.Context;
import android.graphics.Bitmap;
import android.graphics.Canvas;
import android.graphics.Paint;
import android.graphics.RectF;
import android.util.AttributeSet;
import android.view.View;
import org.stlm_edge.core.Judge;

/** View of an image, scaled to fit, with its heatmap on top. */
public final class VerdictView extends View {
    private final Paint smooth = new Paint(Paint.FILTER_BITMAP_FLAG);
    private final Paint layer = new Paint(Paint.FILTER_BITMAP_FLAG);
    private final RectF place = new RectF();
    private Bitmap image;
    private Bitmap heatmap;

    public VerdictView(Context context, AttributeSet attributes) {
        super(context, attributes);
    }

    /** Shows a result; null clears the view. */
    void show(Judge.Result<Shot> result) {
        if (result == null) {
            image = null;
            invalidate();
            return;
        }
        image = result.shot.preview;
        heatmap = Bitmap.createBitmap(result.heatmap, result.size, result.size, Bitmap.Config.ARGB_8888);
        invalidate();
    }

    /** Sets the heatmap's opacity, 0 to 1. */
    void setOpacity(float opacity) {
        layer.setAlpha(Math.round(255 * opacity));
        invalidate();
    }

    @Override
    protected void onDraw(Canvas canvas) {
        if (image == null) {
            return;
        }
        float scale = Math.min((float) getWidth() / image.getWidth(), (float) getHeight() / image.getHeight());
        float width = image.getWidth() * scale;
        float height = image.getHeight() * scale;
        place.set(0, 0, width, height);
        place.offset((getWidth() - width) / 2, (getHeight() - height) / 2);
        canvas.drawBitmap(image, null, place, smooth);
        canvas.drawBitmap(heatmap, null, place, layer);
    }
}
