package org.stlm_edge.core;

import java.io.IOException;
import java.util.concurrent.Callable;
import java.util.concurrent.Executor;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * The model and the one thread that it lives on: opened, given back in the background, opened again, and from a GPU
 * that fails to the CPU. What was last said is said again to a listener that comes later, as after a rotation.
 *
 * @param <S> an image as the app has it
 */
public final class Judge<S extends Judge.Shot> {
    /** An image as it lies, and the EXIF orientation that turns it upright. */
    public interface Shot {
        Image image();

        int orientation();
    }

    /** A model in memory. */
    public interface Loaded extends Model, AutoCloseable {
        @Override
        void close();
    }

    /** What is run, and how it is called. Asked on the judge's thread alone. */
    public interface Engine {
        /** Before anything is loaded, which a damaged model or a GPU's driver can end the whole app by. */
        void begin();

        /** After {@link #begin}, whether it is loaded or not. */
        void end();

        /** The bundle to open, verified. */
        Bundle bundle() throws IOException;

        boolean wantsGpu();

        /** Null: the bundle's own. */
        Double threshold();

        Loaded load(Bundle bundle, boolean gpu) throws Exception;

        /** What runs, for people; {@code refused} is why the GPU that was wanted doesn't, or null. */
        String running(boolean gpu, Throwable refused);

        /** A problem for people. */
        String words(Throwable problem);
    }

    /** Called by the executor that the judge was given for it. */
    public interface Listener<S extends Shot> {
        /** Ready; what really runs, and why it isn't what was asked for. */
        void opened(String running);

        void judged(Result<S> result);

        /** Words for people. No verdict holds any more. */
        void failed(String words);
    }

    /** An image's verdict, and what it took. */
    public static final class Result<S extends Shot> {
        public final S shot;
        public final Verdict verdict;
        /** Clear where normal, to lay over the image: size×size. */
        public final int[] heatmap;

        public final int size;
        /** The network alone. */
        public final double modelMs;
        /** From the decoded image to the verdict. */
        public final double totalMs;
        /** What ran it. */
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
    private final Executor answers;
    private final AtomicInteger waiting = new AtomicInteger();
    private volatile boolean paused = true;

    private Bundle bundle; // these on the worker's thread only
    private Loaded model;
    private double threshold;
    private String running;

    private Listener<S> listener; // these where answers are told
    private String ready;
    private Result<S> shown;
    private String failure;

    /** {@code worker} has one thread, which is the judge's alone; {@code answers} runs what the listener is told. */
    public Judge(Engine engine, ExecutorService worker, Executor answers) {
        this.engine = engine;
        this.worker = worker;
        this.answers = answers;
    }

    /** Called where answers are told. Null: nobody listens now. */
    public void listen(Listener<S> listener) {
        this.listener = listener;
        tellState();
    }

    /** Opens what the engine names, unless it is open already. */
    public void resume() {
        if (paused) {
            paused = false;
            work(() -> {
                load();
                return null;
            });
        }
    }

    /** Frees the model, and drops the images that come until {@link #resume}. */
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

    /** True while an image waits: a camera drops its frames then. */
    public boolean busy() {
        return waiting.get() > 0;
    }

    /** Judges what {@code shot} gives; it is asked on the judge's thread, since decoding takes long. */
    public void judge(Callable<S> shot) {
        work(() -> {
            if (paused) {
                return null;
            }
            if (model == null) {
                load(); // it was given back when something failed
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
            answers.execute(() -> {
                shown = result;
                failure = null;
                tellState();
            });
            return null;
        });
    }

    /** Something beside the model failed, as a camera does: told, and told again, like the judge's own failures. */
    public void fail(String words) {
        answers.execute(() -> {
            shown = null;
            failure = words;
            tellState();
        });
    }

    private void tellState() {
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

    /** A model that a first image doesn't get through is none. */
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
            answers.execute(() -> {
                ready = now;
                failure = null;
                tellState();
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
