package org.stlm_edge.core;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** A typed threshold is kept exactly. */
class ThresholdFieldTest {
    private String kept;
    private final ThresholdField field = new ThresholdField(new ThresholdField.Store() {
        @Override
        public String get() {
            return kept;
        }

        @Override
        public void set(String threshold) {
            kept = threshold;
        }
    });

    @Test
    void leavingBeforeTheFieldWasFilledErasesNothing() {
        kept = "0.42";
        field.left("");
        assertEquals("0.42", kept);
    }

    @Test
    void whatWasTypedComesBackDigitForDigit() {
        field.show();
        field.left("0,42");
        assertEquals("0.42", field.show());
        field.left("0.42");
        assertEquals("0.42", field.show());
        field.left("");
        assertNull(kept);
        assertEquals("", field.show());
    }

    @Test
    void whatIsNoThresholdMeansTheBundlesOwn() {
        kept = "0.42";
        field.show();
        assertThrows(IllegalArgumentException.class, () -> field.left("high"));
        assertNull(kept);
    }

    /** Choosing another bundle resets the threshold, and leaving the unchanged field does not set it again. */
    @Test
    void aThresholdThatWasForgottenMeanwhileStaysForgotten() {
        kept = "0.42";
        field.show();
        kept = null;
        field.left("0.42");
        assertNull(kept);
    }

    @ParameterizedTest
    @CsvSource({"0,0", "1,1", ".5,0.5", "1.,1", "' 0.25 ',0.25", "0.0000001,1e-7", "'0,75',0.75"})
    void numbersFromZeroToOne(String typed, double expected) {
        assertEquals(expected, ThresholdField.parse(typed));
    }

    @ParameterizedTest
    @ValueSource(strings = {"1.01", "-0.1", "2", "1e-3", "NaN", "0x1p-1", "0.5f", ".", "0.5.1", "½", "٠.٥", "0.5 0"})
    void anythingElseIsRefused(String typed) {
        assertThrows(IllegalArgumentException.class, () -> ThresholdField.parse(typed));
    }

    @Test
    void textIsReadAsTheVeryNumber() {
        Random random = new Random(0);
        for (int turn = 0; turn < 1000; turn++) {
            double threshold = random.nextDouble() * Math.pow(10, -random.nextInt(8));
            assertEquals(threshold, ThresholdField.parse(ThresholdField.text(threshold)));
        }
    }
}
