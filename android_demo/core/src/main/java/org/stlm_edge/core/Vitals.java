package org.stlm_edge.core;

import java.io.BufferedReader;
import java.io.File;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;

/** Energy and throttling, read between the queries of a self-check. What the phone doesn't tell is null. */
public final class Vitals {
    /** The phone's own meters. */
    public interface Meters {
        /** Power that the battery gives now, mW; null, too, while a charger feeds the phone. */
        Double milliwatts();

        /** Energy that the battery still holds, mJ; null, too, while a charger feeds the phone. */
        Double storedMillijoules();

        /** 0: the phone does not slow itself down; more: it does, the more the higher. */
        Integer thermalStatus();
    }

    /** A phone that tells nothing. */
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
    private static final int LEAST_STEPS = 20; // of the counter: fewer tell the energy too coarsely
    private static final double LEAST_MILLIWATTS = 50; // a lit screen takes more: below it, the unit is another one

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

    /** What follows counts. */
    void begin(long nanoseconds) {
        readPower(nanoseconds, false);
        readCounter(false);
        readStatus();
    }

    /** Between two queries that count; reads only now and then. */
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
     * Energy of what was counted, mJ: by the battery's counter where it made steps enough, else by its power, each
     * reading lasting half way to the next.
     */
    Double millijoules() {
        if (counterTold && steps >= LEAST_STEPS) {
            return byCounter;
        }
        return powerTold && byPower > 0 ? Double.valueOf(byPower) : null;
    }

    /** How often the phone began to slow itself down, or did so further. */
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

    /** The most memory that the process ever had resident, 10⁶ bytes, by its /proc status; null: it doesn't tell. */
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
