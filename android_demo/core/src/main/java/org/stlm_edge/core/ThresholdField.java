package org.stlm_edge.core;

import java.math.BigDecimal;

/** A text field for the threshold that the user chooses; an empty one means the bundle's own. */
public final class ThresholdField {
    /** Keeps the chosen threshold between starts. */
    public interface Store {
        /** As text; null: none is chosen. */
        String get();

        /** Null: the bundle's own again. */
        void set(String threshold);
    }

    private static final String NUMBER = "[0-9]{0,20}([.][0-9]{0,40})?";

    private final Store store;
    private String shown;

    public ThresholdField(Store store) {
        this.store = store;
    }

    /** What the field is to show now. */
    public String show() {
        String kept = store.get();
        shown = kept == null ? "" : kept;
        return shown;
    }

    /**
     * Keeps what was typed when the field is left; what was never shown, or stands as it was shown, changes nothing.
     *
     * @throws IllegalArgumentException when it is no threshold; the bundle's own is used then
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
     * The threshold that a text means, 0 to 1, with a point or a comma; null where it is empty.
     *
     * @throws IllegalArgumentException when it is none
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

    /** The shortest decimal digits that are read as this very number. */
    public static String text(double threshold) {
        return new BigDecimal(Double.toString(threshold)).toPlainString();
    }
}
