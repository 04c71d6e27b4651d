package org.stlm_edge.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;

/** Parity on the golden pictures, then latency: does this device say what the trained model said, and how fast? */
public final class SelfCheck {
    private static final int MAX_PICTURES = 8; // golden pictures held for the queries, which take them in turn
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
    /** Milliseconds from a resized picture to its map and score; empty when parity failed. */
    public double[] milliseconds = {};
    /** Milliseconds from a picture's file to its verdict: decode, resize, run, judge. */
    public double[] wholeMilliseconds = {};
    /** Medians of ten rounds of {@link #milliseconds}: a device that heats up shows in them. */
    public final List<Double> roundMedians = new ArrayList<>();

    private final List<byte[]> tensors = new ArrayList<>();
    private final List<byte[]> files = new ArrayList<>();
    private final Progress progress;

    private SelfCheck(Manifest manifest, Progress progress) {
        parity = new Parity(manifest);
        this.progress = progress;
    }

    /**
     * Runs it. A model that fails parity is not timed.
     *
     * @throws InterruptedException when the thread was interrupted
     * @throws Exception when the bundle can't be read or the model fails
     */
    public static SelfCheck run(
            Bundle bundle, Model model, GoldenPicture.Decoder decoder, int queries, Progress progress)
            throws Exception {
        SelfCheck check = new SelfCheck(bundle.manifest, progress);
        check.compare(bundle, model, decoder);
        if (check.passed()) {
            check.time(bundle.manifest, model, decoder, queries);
        }
        return check;
    }

    public boolean passed() {
        return parity.problems().isEmpty();
    }

    private void compare(Bundle bundle, Model model, GoldenPicture.Decoder decoder) throws Exception {
        List<Manifest.Golden> golden = bundle.manifest.golden;
        for (Manifest.Golden entry : golden) {
            progress.at("parity", parity.rows.size(), golden.size());
            GoldenPicture picture = GoldenPicture.read(bundle, entry, decoder);
            if (tensors.isEmpty()) {
                firstInferenceMs = milliseconds(number -> model.run(picture.tensor), 0);
            }
            if (tensors.size() < MAX_PICTURES) {
                tensors.add(picture.tensor);
                files.add(bundle.read(entry.picture));
            }
            parity.add(picture, model.run(picture.tensor));
        }
    }

    private void time(Manifest manifest, Model model, GoldenPicture.Decoder decoder, int queries) throws Exception {
        Query graph = number -> Verdict.scoreOf(model.run(tensors.get(number % tensors.size())));
        Query whole = number -> {
            Picture picture = decoder.decode(files.get(number % files.size()));
            Verdict.of(model.run(Resize.toSquare(picture, manifest.size)), manifest.calibration.threshold);
        };
        List<Double> medians = new ArrayList<>();
        while (!steady && medians.size() < MOST_WARM_UP_ROUNDS) {
            medians.add(median(round(graph, WARM_UP_QUERIES)));
            warmup += WARM_UP_QUERIES;
            steady = medians.size() >= 3 && settled(medians.subList(medians.size() - 3, medians.size()));
        }
        int each = (queries + ROUNDS - 1) / ROUNDS;
        double[] all = new double[each * ROUNDS];
        int eachWhole = (each + 7) / 8;
        double[] allWhole = new double[eachWhole * ROUNDS];
        for (int turn = 0; turn < ROUNDS; turn++) {
            progress.at("latency", turn * each, all.length);
            double[] round = round(graph, each);
            System.arraycopy(round, 0, all, turn * each, each);
            roundMedians.add(median(round));
            System.arraycopy(round(whole, eachWhole), 0, allWhole, turn * eachWhole, eachWhole);
        }
        milliseconds = all;
        wholeMilliseconds = allWhole;
    }

    /** So many queries; one more, before them, is not counted. */
    private static double[] round(Query query, int queries) throws Exception {
        double[] taken = new double[queries];
        for (int number = -1; number < queries; number++) {
            if (Thread.interrupted()) {
                throw new InterruptedException("the self-check was stopped");
            }
            double one = milliseconds(query, Math.max(number, 0));
            if (number >= 0) {
                taken[number] = one;
            }
        }
        return taken;
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
