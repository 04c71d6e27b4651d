package org.stlm_edge.core;

import java.io.IOException;
import java.util.concurrent.Callable;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Owner of the model and of the one thread that uses it. Frees the model in the background, loads it again, and falls
 * back from a failing GPU to the CPU. The last state is repeated to a listener set later, as after a rotation.
 *
 * @param <S> the app's type of images
 */
public final class Judge<S extends Judge.Shot> {
    /** Image as stored, with its EXIF orientation. */
    public interface Shot {
        Image image();

        int orientation();
    }

    /** Model in memory. */
    public interface Loaded extends Model, AutoCloseable {
        @Override
        void close();
    }

    /** Source of the model and its settings. Called on the judge's thread only. */
    public interface Engine {
        /** Called before a model is loaded, where a damaged model or a GPU driver can crash the app. */
        void begin();

        /** Called after {@link #begin}, whether or not the model was loaded. */
        void end();

        /** Opens and verifies the bundle. */
        Bundle bundle() throws IOException;

        boolean wantsGpu();

        /** Returns the decision threshold; null for the bundle's own. */
        Double threshold();

        Loaded load(Bundle bundle, boolean gpu) throws Exception;

        /** Describes what runs the model to the user; {@code refused} is why the requested GPU does not, or null. */
        String running(boolean gpu, Throwable refused);

        /** Describes a problem to the user. */
        String words(Throwable problem);
    }

    /** Listener, called by the judge's executor. */
    public interface Listener<S extends Shot> {
        /** Reports that the model is ready, what runs it, and why if that is not what was requested. */
        void opened(String running);

        void judged(Result<S> result);

        /** Reports a failure with a message for the user; the last verdict is no longer valid. */
        void failed(String words);
    }

    /** Verdict on an image, with its latency. */
    public static final class Result<S extends Shot> {
        public final S shot;
        public final Verdict verdict;
        /** Overlay size×size, ARGB, transparent where normal. */
        public final int[] heatmap;

        public final int size;
        /** Latency of the network alone. */
        public final double modelMs;
        /** Latency from the decoded image to the verdict. */
        public final double totalMs;
        /** Description of what ran the model. */
        public final String running;

        Result(S shot, Verdict verdict, int[] heatmap, int size, double modelMs, double totalMs, String running) {
            this.shot = shot;
            this.verdict = verdict;
            this.heatmap = heatmap;
            this.size = size;
            this.modelMs = modelMs;
            this.totalMs = totalMs;
            this.running = running;
        }
    }

    private final Engine engine;
    private final ExecutorService worker;
    private final Executor callbacks;
    private final AtomicInteger waiting = new AtomicInteger();
    private volatile boolean paused = true;

    private Bundle bundle; // used on the worker's thread only
    private Loaded model;
    private double threshold;
    private String running;

    private Listener<S> listener; // used by the callbacks executor only
    private String ready;
    private Result<S> shown;
    private String failure;

    /** Makes a judge; {@code worker} has one thread, used by nothing else, and {@code callbacks} calls the listener. */
    public Judge(Engine engine, ExecutorService worker, Executor callbacks) {
        this.engine = engine;
        this.worker = worker;
        this.callbacks = callbacks;
    }

    /** Sets the listener, or null; to be called by the callbacks executor. */
    public void listen(Listener<S> listener) {
        this.listener = listener;
        reportState();
    }

    /** Loads the engine's model, unless it is loaded. */
    public void resume() {
        if (paused) {
            paused = false;
            work(() -> {
                load();
                return null;
            });
        }
    }

    /** Frees the model, and drops images until {@link #resume}. */
    public void pause() {
        paused = true;
        work(() -> {
            close();
            return null;
        });
    }

    public void shutDown() {
        pause();
        worker.shutdown();
    }

    /** Returns whether an image is waiting, in which case a camera should drop its frames. */
    public boolean busy() {
        return waiting.get() > 0;
    }

    /** Judges an image; {@code shot} is called on the judge's thread, because decoding takes long. */
    public void judge(Callable<S> shot) {
        work(() -> {
            if (paused) {
                return null;
            }
            if (model == null) {
                load(); // it was freed after a failure
            }
            S taken = shot.call();
            long started = System.nanoTime();
            int size = bundle.manifest.size;
            byte[] rgb = Orientation.upright(Resize.toSquare(taken.image(), size), size, taken.orientation());
            long resized = System.nanoTime();
            float[] map = run(rgb);
            double modelMs = (System.nanoTime() - resized) / 1e6;
            Verdict verdict = Verdict.of(map, threshold);
            double totalMs = (System.nanoTime() - started) / 1e6;
            int[] heatmap = Heatmap.layer(map, bundle.manifest.decisionThreshold, 1);
            Result<S> result = new Result<>(taken, verdict, heatmap, size, modelMs, totalMs, running);
            callbacks.execute(() -> {
                shown = result;
                failure = null;
                reportState();
            });
            return null;
        });
    }

    /** Reports a failure outside the model, such as the camera's, like the judge's own. */
    public void fail(String words) {
        callbacks.execute(() -> {
            shown = null;
            failure = words;
            reportState();
        });
    }

    private void reportState() {
        if (listener == null) {
            return;
        }
        if (failure != null) {
            listener.failed(failure);
        } else if (shown != null) {
            listener.judged(shown);
        } else if (ready != null) {
            listener.opened(ready);
        }
    }

    /** Loads the model; one that fails on a first image counts as not loaded. */
    private void load() throws Exception {
        close();
        engine.begin();
        try {
            bundle = engine.bundle();
            Double chosen = engine.threshold();
            threshold = chosen == null ? bundle.manifest.decisionThreshold.value : chosen;
            Throwable refused = null;
            if (engine.wantsGpu()) {
                try {
                    open(true);
                } catch (Exception | LinkageError problem) {
                    refused = problem;
                }
            }
            boolean gpu = model != null;
            if (!gpu) {
                open(false);
            }
            String now = running = engine.running(gpu, refused);
            callbacks.execute(() -> {
                ready = now;
                failure = null;
                reportState();
            });
        } finally {
            engine.end();
        }
    }

    private void open(boolean gpu) throws Exception {
        model = engine.load(bundle, gpu);
        float[] map = run(new byte[bundle.manifest.size * bundle.manifest.size * 3]);
        if (!Verdict.isFinite(map)) {
            forget();
        }
        Verdict.of(map, threshold);
    }

    private float[] run(byte[] rgb) throws Exception {
        try {
            return model.run(rgb);
        } catch (Exception | LinkageError broken) {
            forget();
            throw broken;
        }
    }

    private void close() {
        forget();
        bundle = null;
    }

    private void forget() {
        Loaded old = model;
        model = null;
        if (old != null) {
            old.close();
        }
    }

    private void work(Callable<Void> task) {
        if (worker.isShutdown()) {
            return;
        }
        waiting.incrementAndGet();
        worker.execute(() -> {
            try {
                task.call();
            } catch (OutOfMemoryError | Exception | LinkageError problem) {
                if (problem instanceof OutOfMemoryError) {
                    close();
                }
                fail(engine.words(problem));
            } finally {
                waiting.decrementAndGet();
            }
        });
    }
}
