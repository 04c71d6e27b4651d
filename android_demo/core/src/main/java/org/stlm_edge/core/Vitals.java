package org.stlm_edge.core;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;

/** Energy and throttling, read between the queries of a self-check. Null where the phone does not report them. */
public final class Vitals {
    /** Sensors of the phone. */
    public interface Meters {
        /** Returns the power drawn from the battery, mW; null also while charging. */
        Double milliwatts();

        /** Returns the energy left in the battery, mJ; null also while charging. */
        Double storedMillijoules();

        /** Returns Android's thermal status: 0 without throttling, higher with more. */
        Integer thermalStatus();
    }

    /** Sensors of a phone that reports nothing. */
    public static final Meters NONE = new Meters() {
        @Override
        public Double milliwatts() {
            return null;
        }

        @Override
        public Double storedMillijoules() {
            return null;
        }

        @Override
        public Integer thermalStatus() {
            return null;
        }
    };

    private static final long INTERVAL_NS = 250_000_000;
    private static final int LEAST_STEPS = 20; // of the energy counter: fewer are too coarse
    private static final double LEAST_MILLIWATTS = 50; // a lit screen draws more: below it, the phone uses another unit

    private final Meters meters;
    private boolean powerTold = true;
    private double byPower;
    private double milliwatts;
    private long at;
    private boolean counterTold = true;
    private double byCounter;
    private double stored;
    private int steps;
    private Integer status = 0;
    private Integer rises = 0;

    Vitals(Meters meters) {
        this.meters = meters;
    }

    /** Starts counting. */
    void begin(long nanoseconds) {
        readPower(nanoseconds, false);
        readCounter(false);
        readStatus();
    }

    /** Called between two queries that count; reads the sensors only now and then. */
    void between(long nanoseconds) {
        if (nanoseconds - at >= INTERVAL_NS) {
            end(nanoseconds);
        }
    }

    void end(long nanoseconds) {
        readPower(nanoseconds, true);
        readCounter(true);
        readStatus();
    }

    /**
     * Returns the energy counted, mJ: from the battery's counter if it made enough steps, else from its power, where
     * each reading holds half way to the next.
     */
    Double millijoules() {
        if (counterTold && steps >= LEAST_STEPS) {
            return byCounter;
        }
        return powerTold && byPower > 0 ? Double.valueOf(byPower) : null;
    }

    /** Returns how often throttling began or increased. */
    Integer throttlingEvents() {
        return rises;
    }

    private void readPower(long nanoseconds, boolean counts) {
        Double now = powerTold ? meters.milliwatts() : null;
        powerTold = now != null && now >= LEAST_MILLIWATTS;
        if (powerTold) {
            byPower += counts ? (milliwatts + now) / 2 * (nanoseconds - at) / 1e9 : 0;
            milliwatts = now;
        }
        at = nanoseconds;
    }

    private void readCounter(boolean counts) {
        Double now = counterTold ? meters.storedMillijoules() : null;
        counterTold = now != null && (!counts || now <= stored);
        if (counterTold) {
            steps += counts && now < stored ? 1 : 0;
            byCounter += counts ? stored - now : 0;
            stored = now;
        }
    }

    private void readStatus() {
        Integer now = rises == null ? null : meters.thermalStatus();
        if (now == null) {
            rises = null;
            return;
        }
        rises += now > status ? 1 : 0;
        status = now;
    }

    /** Returns the peak resident memory of the process, 10⁶ bytes, from its /proc status; null where it is missing. */
    public static Double peakMemoryMb(File status) {
        try (BufferedReader lines = new BufferedReader(
                new InputStreamReader(new FileInputStream(status), StandardCharsets.ISO_8859_1))) {
            for (String line; (line = lines.readLine()) != null; ) {
                if (line.matches("VmHWM:\\s+[0-9]{1,12} kB")) {
                    return Math.round(Long.parseLong(line.replaceAll("[^0-9]", "")) * 1024 / 1e5) / 10.0;
                }
            }
        } catch (IOException closed) {
            return null;
        }
        return null;
    }
}
