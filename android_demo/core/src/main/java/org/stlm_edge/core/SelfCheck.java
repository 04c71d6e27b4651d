package org.stlm_edge.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/** Check of this device: parity with the trained model on the golden images, then latency. */
public final class SelfCheck {
    private static final int MAX_IMAGES = 8; // golden images in memory, which the queries use in turn
    private static final int ROUNDS = 10;
    private static final int WARM_UP_QUERIES = 8;
    private static final int MOST_WARM_UP_ROUNDS = 25;

    /** Progress listener, called on the thread that runs the check. */
    public interface Progress {
        void at(String what, int done, int of);
    }

    private interface Query {
        void ask(int number) throws Exception;
    }

    public final Parity parity;
    public double firstInferenceMs;
    /** Number of queries before the first that counts. */
    public int warmup;
    /** Whether the warm-up ended because its medians were steady. */
    public boolean steady;
    /** Milliseconds from a resized image to its map and score; empty if not timed. */
    public double[] milliseconds = {};
    /** Milliseconds from an image's file to its verdict: decode, resize, run, judge. */
    public double[] wholeMilliseconds = {};
    /** Medians of ten rounds of {@link #milliseconds}; they rise on a device that heats up. */
    public final List<Double> roundMedians = new ArrayList<>();
    /** Whether it was timed, on request, although parity failed. */
    public boolean timedEvenIfWrong;
    /** Energy of the whole phone per query of {@link #milliseconds}, mJ; null where the phone does not report it. */
    public Double millijoules;
    /** Number of throttling events while timing; null where the phone does not report it. */
    public Integer throttlingEvents;

    private final List<byte[]> tensors = new ArrayList<>();
    private final List<byte[]> files = new ArrayList<>();
    private final Progress progress;
    private Vitals vitals;

    /** Minimum number of queries and seconds to measure. */
    public static final class Effort {
        public final int queries;
        public final int seconds;
        /** Whether a model that fails parity is timed, too. */
        public final boolean evenIfWrong;

        public Effort(int queries, int seconds, boolean evenIfWrong) {
            this.queries = queries;
            this.seconds = seconds;
            this.evenIfWrong = evenIfWrong;
        }
    }

    private SelfCheck(Manifest manifest, Progress progress) {
        parity = new Parity(manifest);
        this.progress = progress;
    }

    /**
     * Runs the check. A model that fails parity is timed only on request.
     *
     * @throws InterruptedException if the thread was interrupted
     * @throws Exception if the bundle cannot be read or the model fails
     */
    public static SelfCheck run(
            Bundle bundle, Model model, GoldenImage.Decoder decoder, Effort effort, Vitals.Meters meters,
            Progress progress)
            throws Exception {
        SelfCheck check = new SelfCheck(bundle.manifest, progress);
        check.compare(bundle, model, decoder);
        check.timedEvenIfWrong = effort.evenIfWrong && !check.passed();
        if (check.passed() || check.timedEvenIfWrong) {
            check.vitals = new Vitals(meters);
            check.time(bundle.manifest, model, decoder, effort);
        }
        return check;
    }

    public boolean passed() {
        return parity.problems().isEmpty();
    }

    private void compare(Bundle bundle, Model model, GoldenImage.Decoder decoder) throws Exception {
        List<Manifest.Golden> golden = bundle.manifest.golden;
        for (Manifest.Golden entry : golden) {
            progress.at("parity", parity.rows.size(), golden.size());
            GoldenImage image = GoldenImage.read(bundle, entry, decoder);
            if (tensors.isEmpty()) {
                firstInferenceMs = milliseconds(number -> model.run(image.tensor), 0);
            }
            if (tensors.size() < MAX_IMAGES) {
                tensors.add(image.tensor);
                files.add(bundle.read(entry.image));
            }
            parity.add(image, model.run(image.tensor));
        }
    }

    private void time(Manifest manifest, Model model, GoldenImage.Decoder decoder, Effort effort) throws Exception {
        Query graph = number -> Verdict.scoreOf(model.run(tensors.get(number % tensors.size())));
        Query whole = number -> {
            Image image = decoder.decode(files.get(number % files.size()));
            Verdict.scoreOf(model.run(Resize.toSquare(image, manifest.size)));
        };
        List<Double> medians = new ArrayList<>();
        while (!steady && medians.size() < MOST_WARM_UP_ROUNDS) {
            medians.add(median(round(graph, WARM_UP_QUERIES, 0, false)));
            warmup += WARM_UP_QUERIES;
            steady = medians.size() >= 3 && settled(medians.subList(medians.size() - 3, medians.size()));
        }
        int each = (effort.queries + ROUNDS - 1) / ROUNDS;
        double eachMs = effort.seconds * 1e3 / ROUNDS;
        for (int turn = 0; turn < ROUNDS; turn++) {
            progress.at("latency", turn, ROUNDS);
            double[] round = round(graph, each, eachMs, true);
            roundMedians.add(median(round));
            milliseconds = joined(milliseconds, round);
            wholeMilliseconds = joined(wholeMilliseconds, round(whole, (round.length + 7) / 8, 0, false));
        }
        Double all = vitals.millijoules();
        millijoules = all == null ? null : Double.valueOf(all / milliseconds.length);
        throttlingEvents = vitals.throttlingEvents();
    }

    /** Runs at least so many queries and milliseconds, after one query that does not count; returns their latencies. */
    private double[] round(Query query, int queries, double milliseconds, boolean metered) throws Exception {
        double[] taken = new double[queries];
        int count = 0;
        double sum = 0;
        milliseconds(query, 0);
        if (metered) {
            vitals.begin(System.nanoTime());
        }
        while (count < queries || sum < milliseconds) {
            if (Thread.interrupted()) {
                throw new InterruptedException("the self-check was stopped");
            }
            taken = count < taken.length ? taken : Arrays.copyOf(taken, 2 * count);
            taken[count] = milliseconds(query, count);
            sum += taken[count++];
            if (metered) {
                vitals.between(System.nanoTime());
            }
        }
        if (metered) {
            vitals.end(System.nanoTime());
        }
        return Arrays.copyOf(taken, count);
    }

    private static double[] joined(double[] one, double[] other) {
        double[] both = Arrays.copyOf(one, one.length + other.length);
        System.arraycopy(other, 0, both, one.length, other.length);
        return both;
    }

    private static double milliseconds(Query query, int number) throws Exception {
        long started = System.nanoTime();
        query.ask(number);
        return Math.round((System.nanoTime() - started) / 100.0) / 1e4;
    }

    private static boolean settled(List<Double> medians) {
        return Collections.max(medians) <= 1.05 * Collections.min(medians);
    }

    private static double median(double[] values) {
        double[] sorted = values.clone();
        Arrays.sort(sorted);
        return (sorted[(sorted.length - 1) / 2] + sorted[sorted.length / 2]) / 2;
    }
}
