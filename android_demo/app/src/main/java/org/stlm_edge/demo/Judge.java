package org.stlm_edge.demo;

import android.content.Context;
import android.os.Handler;
import android.os.Looper;
import java.util.Locale;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;
import org.stlm_edge.core.Bundle;
import org.stlm_edge.core.Heatmap;
import org.stlm_edge.core.Orientation;
import org.stlm_edge.core.Resize;
import org.stlm_edge.core.Verdict;

/** The model and the one thread that it lives on. Answers come on the main thread. */
final class Judge {
    /** Called on the main thread. */
    interface Listener {
        /** What really runs; if it isn't what was asked for, a second line says why. */
        void opened(String delegate);

        void judged(Result result);

        /** Words for people. */
        void failed(String words);
    }

    /** A picture's verdict, and what it took. */
    static final class Result {
        final Shot shot;
        final Verdict verdict;
        /** Clear where normal, to lay over the picture. */
        final int[] heatmap;

        final int size;
        /** The network alone. */
        final double modelMs;
        /** From the decoded picture to the verdict. */
        final double totalMs;

        Result(Shot shot, Verdict verdict, int[] heatmap, int size, double modelMs, double totalMs) {
            this.shot = shot;
            this.verdict = verdict;
            this.heatmap = heatmap;
            this.size = size;
            this.modelMs = modelMs;
            this.totalMs = totalMs;
        }
    }

    private final Context context;
    private final Handler main = new Handler(Looper.getMainLooper());
    private final ExecutorService worker = Executors.newSingleThreadExecutor();
    private final AtomicInteger waiting = new AtomicInteger();
    private volatile Listener listener;
    private volatile boolean paused;
    private Bundle bundle; // these three on the worker's thread only
    private LiteRtModel model;
    private double threshold;

    Judge(Context context) {
        this.context = context.getApplicationContext();
    }

    /** Null: nobody listens now. */
    void listen(Listener listener) {
        this.listener = listener;
    }

    /** Opens what the settings name; where a GPU refuses, the CPU runs it, in words. */
    void open() {
        paused = false;
        work(this::load);
    }

    private Void load() throws Exception {
        close();
        Settings settings = new Settings(context);
        String note = settings.recover() ? context.getString(R.string.recovered) : null;
        settings.setLoading(true);
        try {
            bundle = Bundles.open(context, settings);
            threshold = settings.threshold(bundle.manifest);
            if (settings.gpu()) {
                try {
                    model = new LiteRtModel(context, bundle, true, settings.threads());
                } catch (Exception | LinkageError refused) {
                    note = context.getString(R.string.gpu_refused, said(refused));
                }
            }
            String delegate = context.getString(R.string.gpu);
            if (model == null) {
                model = new LiteRtModel(context, bundle, false, settings.threads());
                delegate = context.getString(R.string.cpu_threads, settings.threads());
            }
            model.run(new byte[bundle.manifest.size * bundle.manifest.size * 3]);
            String running = note == null ? delegate : delegate + "\n" + note;
            tell(to -> to.opened(running));
        } finally {
            settings.setLoading(false);
        }
        return null;
    }

    /** True while a picture waits: a camera drops its frames then. */
    boolean busy() {
        return waiting.get() > 0;
    }

    /** Judges what {@code shot} gives; it is asked on the worker's thread, since decoding takes long. */
    void judge(Callable<Shot> shot) {
        work(() -> {
            if (paused) {
                return null;
            }
            if (model == null) {
                load(); // it was given back when memory ran out, or couldn't be opened
            }
            Shot taken = shot.call();
            long started = System.nanoTime();
            int size = bundle.manifest.size;
            byte[] rgb = Orientation.upright(Resize.toSquare(taken.picture, size), size, taken.orientation);
            long resized = System.nanoTime();
            float[] map = model.run(rgb);
            double modelMs = (System.nanoTime() - resized) / 1e6;
            Verdict verdict = Verdict.of(map, threshold);
            double totalMs = (System.nanoTime() - started) / 1e6;
            int[] heatmap = Heatmap.layer(map, bundle.manifest.calibration, 1);
            Result result = new Result(taken, verdict, heatmap, size, modelMs, totalMs);
            tell(to -> to.judged(result));
            return null;
        });
    }

    /** Frees the model; {@link #open} brings it back. */
    void pause() {
        paused = true;
        work(() -> {
            close();
            return null;
        });
    }

    void shutDown() {
        pause();
        worker.shutdown();
    }

    private void close() {
        if (model != null) {
            model.close();
        }
        model = null;
        bundle = null;
    }

    private void work(Callable<Void> task) {
        if (worker.isShutdown()) {
            return;
        }
        waiting.incrementAndGet();
        worker.execute(() -> {
            try {
                task.call();
            } catch (OutOfMemoryError full) {
                close();
                tell(to -> to.failed(context.getString(R.string.out_of_memory)));
            } catch (Exception | LinkageError problem) {
                tell(to -> to.failed(said(problem)));
            } finally {
                waiting.decrementAndGet();
            }
        });
    }

    private interface Message {
        void tell(Listener listener);
    }

    private void tell(Message message) {
        main.post(() -> {
            Listener now = listener;
            if (now != null) {
                message.tell(now);
            }
        });
    }

    /** An error in words, one line. */
    static String said(Throwable problem) {
        String words = problem.getMessage();
        return words == null || words.isEmpty()
                ? problem.getClass().getSimpleName()
                : words.split("\n", 2)[0];
    }

    static String milliseconds(double value) {
        return String.format(Locale.getDefault(), value < 20 ? "%.1f" : "%.0f", value);
    }
}
