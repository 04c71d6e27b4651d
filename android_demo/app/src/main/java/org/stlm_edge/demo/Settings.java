package org.stlm_edge.demo;

import android.content.Context;
import android.content.SharedPreferences;
import org.stlm_edge.core.ThresholdField;

/** What the user chose; kept between starts. */
final class Settings implements ThresholdField.Store {
    private final SharedPreferences kept;

    Settings(Context context) {
        kept = context.getSharedPreferences("settings", Context.MODE_PRIVATE);
    }

    static int cores() {
        return Runtime.getRuntime().availableProcessors();
    }

    int threads() {
        return Math.max(1, Math.min(kept.getInt("threads", Math.min(4, cores())), cores()));
    }

    void setThreads(int threads) {
        kept.edit().putInt("threads", threads).apply();
    }

    boolean gpu() {
        return kept.getBoolean("gpu", false);
    }

    void setGpu(boolean gpu) {
        kept.edit().putBoolean("gpu", gpu).apply();
    }

    /** The picked bundle instead of the embedded one. */
    boolean picked() {
        return kept.getBoolean("picked", false);
    }

    void setPicked(boolean picked) {
        kept.edit().putBoolean("picked", picked).remove("threshold").apply();
    }

    /**
     * Called before and after a model is loaded and first run, which a damaged model or a GPU's driver can end the app
     * by. Written at once.
     */
    void setLoading(boolean loading) {
        kept.edit().putBoolean("loading", loading).commit();
    }

    /** The app ended while it loaded a model: back to the embedded one, on the CPU, or it would end again. */
    boolean recover() {
        boolean died = kept.getBoolean("loading", false);
        if (died) {
            setPicked(false);
            setGpu(false);
        }
        return died;
    }

    /** Null: the bundle's own. */
    Double threshold() {
        String kept = get();
        return kept == null ? null : ThresholdField.parse(kept);
    }

    @Override
    public String get() {
        return kept.getString("threshold", null);
    }

    @Override
    public void set(String threshold) {
        kept.edit().putString("threshold", threshold).apply();
    }
}
