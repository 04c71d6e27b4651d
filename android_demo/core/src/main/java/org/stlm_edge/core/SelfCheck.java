package org.stlm_edge.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/** Parity on the golden images, then latency: does this device say what the trained model said, and how fast? */
public final class SelfCheck {
    private static final int MAX_IMAGES = 8; // golden images held for the queries, which take them in turn
    private static final int ROUNDS = 10;
    private static final int WARM_UP_QUERIES = 8;
    private static final int MOST_WARM_UP_ROUNDS = 25;

    /** Told how far the check is; called on the thread that runs it. */
    public interface Progress {
        void at(String what, int done, int of);
    }

    private interface Query {
        void ask(int number) throws Exception;
    }

    public final Parity parity;
    public double firstInferenceMs;
    /** Queries before the first that counts. */
    public int warmup;
    /** The warm-up ended because its medians had settled. */
    public boolean steady;
    /** Milliseconds from a resized image to its map and score; empty when it wasn't timed. */
    public double[] milliseconds = {};
    /** Milliseconds from an image's file to its verdict: decode, resize, run, judge. */
    public double[] wholeMilliseconds = {};
    /** Medians of ten rounds of {@link #milliseconds}: a device that heats up shows in them. */
    public final List<Double> roundMedians = new ArrayList<>();
    /** It failed parity, and was timed since that was asked for. */
    public boolean timedEvenIfWrong;
    /** Of a query of {@link #milliseconds}, the whole phone's, mJ; null where it doesn't tell. */
    public Double millijoules;
    /** How often the phone slowed itself down meanwhile; null where it doesn't tell. */
    public Integer throttlingEvents;

    private final List<byte[]> tensors = new ArrayList<>();
    private final List<byte[]> files = new ArrayList<>();
    private final Progress progress;
    private Vitals vitals;

    /** How long to time for: so many queries, and so many seconds of them, at least. */
    public static final class Effort {
        public final int queries;
        public final int seconds;
        /** A model that fails parity is timed too. */
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
     * Runs it. A model that fails parity is timed only where that is asked for.
     *
     * @throws InterruptedException when the thread was interrupted
     * @throws Exception when the bundle can't be read or the model fails
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

    /** So many queries, and more until so many milliseconds are full; one, before them, is not counted. */
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
