package org.stlm_edge.core;

import java.math.BigDecimal;

/** Text field for the user's decision threshold; empty means the bundle's own. */
public final class ThresholdField {
    /** Persistent storage of the threshold. */
    public interface Store {
        /** Returns the threshold as text; null if the user has set none. */
        String get();

        /** Stores the threshold; null for the bundle's own. */
        void set(String threshold);
    }

    private static final String NUMBER = "[0-9]{0,20}([.][0-9]{0,40})?";

    private final Store store;
    private String shown;

    public ThresholdField(Store store) {
        this.store = store;
    }

    /** Returns the text to show in the field. */
    public String show() {
        String kept = store.get();
        shown = kept == null ? "" : kept;
        return shown;
    }

    /**
     * Stores the text when the field loses focus; text that was never shown, or is unchanged, has no effect.
     *
     * @throws IllegalArgumentException if it is no threshold; the bundle's own is then used
     */
    public void left(String typed) {
        if (shown == null || typed.equals(shown)) {
            return;
        }
        store.set(null);
        Double chosen = parse(typed);
        store.set(chosen == null ? null : text(chosen));
        show();
    }

    /**
     * Parses a threshold, 0 to 1, with a decimal point or comma; returns null for an empty text.
     *
     * @throws IllegalArgumentException if the text is no threshold
     */
    public static Double parse(String typed) {
        String text = typed.trim().replace(',', '.');
        if (text.isEmpty()) {
            return null;
        }
        if (!text.matches(NUMBER) || text.equals(".")) {
            throw new IllegalArgumentException("no number: " + Json.shorten(typed, 40));
        }
        double value = Double.parseDouble(text);
        if (value > 1) {
            throw new IllegalArgumentException(Json.shorten(typed, 40) + " is more than 1");
        }
        return value;
    }

    /** Returns the shortest decimal digits that parse as this number. */
    public static String text(double threshold) {
        return new BigDecimal(Double.toString(threshold)).toPlainString();
    }
}
