package org.stlm_edge.demo;

import android.content.Context;
import java.io.IOException;
import org.stlm_edge.core.Bundle;
import org.stlm_edge.core.Judge;

/** Engine that loads the bundle of the settings on LiteRT. */
final class LiteRtEngine implements Judge.Engine {
    private final Context context;
    private final Settings settings;
    private boolean recovered;

    LiteRtEngine(Context context) {
        this.context = context.getApplicationContext();
        settings = new Settings(this.context);
    }

    @Override
    public void begin() {
        recovered = settings.recover();
        settings.setLoading(true);
    }

    @Override
    public void end() {
        settings.setLoading(false);
    }

    @Override
    public Bundle bundle() throws IOException {
        return Bundles.open(context, settings);
    }

    @Override
    public boolean wantsGpu() {
        return settings.gpu();
    }

    @Override
    public Double threshold() {
        return settings.threshold();
    }

    @Override
    public Judge.Loaded load(Bundle bundle, boolean gpu) throws Exception {
        return new LiteRtModel(context, bundle, gpu, settings.threads());
    }

    @Override
    public String running(boolean gpu, Throwable refused) {
        String words = gpu
                ? context.getString(R.string.gpu)
                : context.getString(R.string.cpu_threads, settings.threads());
        if (recovered) {
            words += "\n" + context.getString(R.string.recovered);
        }
        return refused == null ? words : words + "\n" + context.getString(R.string.gpu_refused, words(refused));
    }

    @Override
    public String words(Throwable problem) {
        return Words.of(context, problem);
    }
}
