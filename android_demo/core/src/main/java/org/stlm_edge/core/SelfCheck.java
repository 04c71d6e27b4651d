package org.stlm_edge.core;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** Parity on the golden pictures, then latency: does this device say what the trained model said, and how fast? */
public final class SelfCheck {
    private static final int MAX_PICTURES = 8; // golden pictures held for the queries, which take them in turn
    private static final int ROUNDS = 10;

    /** Told how far the check is; called on the thread that runs it. */
    public interface Progress {
        void at(String what, int done, int of);
    }

    public final Bundle bundle;
    public final Parity parity;
    public final int warmup;
    /** Milliseconds from a resized picture to its map and score, one for each query; empty when parity failed. */
    public double[] milliseconds = {};

    public double firstInferenceMs;

    private SelfCheck(Bundle bundle, int warmup) {
        this.bundle = bundle;
        this.warmup = warmup;
        parity = new Parity(bundle.manifest);
    }

    /**
     * Runs it. A model that fails parity is not timed.
     *
     * @throws InterruptedException when the thread was interrupted
     * @throws Exception when the bundle can't be read or the model fails
     */
    public static SelfCheck run(
            Bundle bundle, Model model, GoldenPicture.Decoder decoder, int warmup, int queries, Progress progress)
            throws Exception {
        SelfCheck check = new SelfCheck(bundle, warmup);
        List<byte[]> pictures = new ArrayList<>();
        List<Manifest.Golden> golden = bundle.manifest.golden;
        for (Manifest.Golden entry : golden) {
            progress.at("parity", check.parity.rows.size(), golden.size());
            GoldenPicture picture = GoldenPicture.read(bundle, entry, decoder);
            if (pictures.isEmpty()) {
                check.firstInferenceMs = query(model, picture.tensor);
            }
            if (pictures.size() < MAX_PICTURES) {
                pictures.add(picture.tensor);
            }
            check.parity.add(picture, model.run(picture.tensor));
        }
        if (!check.passed()) {
            return check;
        }
        double[] milliseconds = new double[queries];
        for (int i = -warmup; i < queries; i++) {
            if (Thread.interrupted()) {
                throw new InterruptedException("the self-check was stopped");
            }
            progress.at("latency", Math.max(i, 0), queries);
            double taken = query(model, pictures.get((i + warmup) % pictures.size()));
            if (i >= 0) {
                milliseconds[i] = taken;
            }
        }
        check.milliseconds = milliseconds;
        return check;
    }

    public boolean passed() {
        return parity.problems().isEmpty();
    }

    /** Null when nothing was timed. */
    public Latency latency() {
        return milliseconds.length == 0 ? null : new Latency(milliseconds);
    }

    /** Medians of ten stretches of the queries: a device that heats up shows in them. */
    double[] roundMedians() {
        List<Double> medians = new ArrayList<>();
        for (int turn = 0; turn < ROUNDS; turn++) {
            int from = milliseconds.length * turn / ROUNDS;
            int to = milliseconds.length * (turn + 1) / ROUNDS;
            if (to > from) {
                double[] round = Arrays.copyOfRange(milliseconds, from, to);
                Arrays.sort(round);
                medians.add((round[(round.length - 1) / 2] + round[round.length / 2]) / 2);
            }
        }
        double[] values = new double[medians.size()];
        for (int i = 0; i < values.length; i++) {
            values[i] = medians.get(i);
        }
        return values;
    }

    private static double query(Model model, byte[] picture) throws Exception {
        long started = System.nanoTime();
        Verdict.scoreOf(model.run(picture));
        return Math.round((System.nanoTime() - started) / 100.0) / 1e4;
    }
}
