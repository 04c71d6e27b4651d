package org.stlm_edge.demo;

import android.content.Context;
import android.content.SharedPreferences;
import org.stlm_edge.core.ThresholdField;

/** The user's settings, persistent. */
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

    /** Returns whether the chosen bundle replaces the embedded one. */
    boolean picked() {
        return kept.getBoolean("picked", false);
    }

    void setPicked(boolean picked) {
        kept.edit().putBoolean("picked", picked).remove("threshold").apply();
    }

    /**
     * Records that a model is being loaded and first run, where a damaged model or a GPU driver can crash the app.
     * Written immediately.
     */
    void setLoading(boolean loading) {
        kept.edit().putBoolean("loading", loading).commit();
    }

    /** After a crash while a model was loaded, returns to the embedded model on the CPU, so as not to crash again. */
    boolean recover() {
        boolean died = kept.getBoolean("loading", false);
        if (died) {
            setPicked(false);
            setGpu(false);
        }
        return died;
    }

    /** Returns the user's decision threshold; null for the bundle's own. */
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
