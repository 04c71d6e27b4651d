package org.stlm_edge.demo;

import android.content.Context;
import java.util.Locale;

/** Formats values for the user. */
final class Words {
    private Words() {}

    /** Returns an error on one line. */
    static String of(Context context, Throwable problem) {
        if (problem instanceof OutOfMemoryError) {
            return context.getString(R.string.out_of_memory);
        }
        String words = problem.getMessage();
        return words == null || words.isEmpty()
                ? problem.getClass().getSimpleName()
                : words.split("\n", 2)[0];
    }

    static String milliseconds(double value) {
        return String.format(Locale.getDefault(), value < 20 ? "%.1f" : "%.0f", value);
    }
}
