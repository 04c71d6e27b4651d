package org.stlm_edge.core;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import org.junit.jupiter.api.Test;

/** Simulated sensors, read over ten seconds of queries. */
class VitalsTest {
    private double now;

    private interface Reading<T> {
        T at(double second);
    }

    private Vitals worked(Reading<Double> power, Reading<Double> stored, Reading<Integer> status) {
        Vitals vitals = new Vitals(new Vitals.Meters() {
            @Override
            public Double milliwatts() {
                return power.at(now);
            }

            @Override
            public Double storedMillijoules() {
                return stored.at(now);
            }

            @Override
            public Integer thermalStatus() {
                return status.at(now);
            }
        });
        vitals.begin(0);
        for (long nanoseconds = 0; nanoseconds < 10_000_000_000L; nanoseconds += 7_000_000) {
            now = nanoseconds / 1e9;
            vitals.between(nanoseconds);
        }
        now = 10;
        vitals.end(10_000_000_000L);
        return vitals;
    }

    @Test
    void powerIsAddedUp() {
        Vitals vitals = worked(second -> 2000 + 100 * second, second -> null, second -> 0);
        assertEquals(25_000, vitals.millijoules(), 1);
        assertEquals(0, vitals.throttlingEvents());
    }

    /** Energy between two rounds does not count. */
    @Test
    void whatLiesBetweenRoundsDoesNotCount() {
        Vitals vitals = new Vitals(new Vitals.Meters() {
            @Override
            public Double milliwatts() {
                return now == 0 || now == 1 || now >= 100 ? 1000.0 : 9000;
            }

            @Override
            public Double storedMillijoules() {
                return null;
            }

            @Override
            public Integer thermalStatus() {
                return null;
            }
        });
        for (double start : new double[] {0, 100}) {
            now = start;
            vitals.begin((long) (start * 1e9));
            now = start + 1;
            vitals.end((long) (now * 1e9));
        }
        assertEquals(2000, vitals.millijoules(), 1e-6);
        assertNull(vitals.throttlingEvents());
    }

    @Test
    void aFineCounterIsBelievedAndACoarseOneNot() {
        Reading<Double> power = second -> 3000.0;
        assertEquals(20_000, worked(power, second -> 1e6 - 2000 * second, second -> 0).millijoules(), 100);
        Reading<Double> coarse = second -> 1e6 - 20_000 * Math.floor(second / 6);
        assertEquals(30_000, worked(power, coarse, second -> 0).millijoules(), 1);
        assertNull(worked(second -> null, coarse, second -> 0).millijoules());
    }

    @Test
    void aPhoneThatIsPluggedInMeanwhileOrCountsInAnotherUnitTellsNothing() {
        assertNull(worked(second -> second < 9 ? 3000.0 : null, second -> null, second -> 0).millijoules());
        assertNull(worked(second -> 3.0, second -> null, second -> 0).millijoules());
    }

    @Test
    void eachTimeThatThePhoneSlowsItselfDownIsCounted() {
        Reading<Double> nothing = second -> null;
        int[] status = {0, 1, 3, 1, 0, 2};
        assertEquals(3, worked(nothing, nothing, second -> status[(int) second / 2]).throttlingEvents());
        assertEquals(1, worked(nothing, nothing, second -> 2).throttlingEvents(), "it did before");
        assertNull(worked(nothing, nothing, second -> second < 5 ? 0 : null).throttlingEvents());
    }

    @Test
    void peakMemoryIsThatOfThisProcess() {
        double before = Vitals.peakMemoryMb(new File("/proc/self/status"));
        byte[] large = new byte[40_000_000];
        for (int i = 0; i < large.length; i += 1000) {
            large[i] = 1;
        }
        double after = Vitals.peakMemoryMb(new File("/proc/self/status"));
        assertTrue(before > 20 && after >= before && after < 1000, before + " " + after);
        assertNull(Vitals.peakMemoryMb(new File("/proc/self/nothing")));
        assertNull(Vitals.peakMemoryMb(new File("/proc/self/cmdline")));
    }
}
