package org.stlm_edge.core;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** States shown to the user: ready, judged, failed; in the background, after a rotation, without the GPU. */
class JudgeTest {
    private final ExecutorService worker = Executors.newSingleThreadExecutor();
    private final Queue<Runnable> main = new ConcurrentLinkedQueue<>();
    private final Phone phone = new Phone();
    private final Judge<Grey> judge = new Judge<>(phone, worker, main::add);
    private final List<String> states = new ArrayList<>();

    private final Judge.Listener<Grey> screen = new Judge.Listener<Grey>() {
        @Override
        public void opened(String running) {
            states.add("ready on " + running);
        }

        @Override
        public void judged(Judge.Result<Grey> result) {
            states.add((result.verdict.anomalous ? "anomalous on " : "normal on ") + result.running);
        }

        @Override
        public void failed(String words) {
            states.add("failed: " + words);
        }
    };

    /** Image of one grey level. */
    private static final class Grey implements Judge.Shot, Image {
        final int level;

        Grey(int level) {
            this.level = level;
        }

        @Override
        public Image image() {
            return this;
        }

        @Override
        public int orientation() {
            return 1;
        }

        @Override
        public int width() {
            return 3;
        }

        @Override
        public int height() {
            return 2;
        }

        @Override
        public void row(int y, int[] argb) {
            Arrays.fill(argb, level * 0x10101);
        }
    }

    /** Engine whose models output the image's brightness. */
    private static final class Phone implements Judge.Engine {
        boolean wantsGpu;
        boolean gpuLoads = true;
        boolean gpuRuns = true;
        float gpuSays = 0;
        boolean damaged;
        Throwable breaks;
        Double threshold = 0.5;
        int loads;
        int closed;
        boolean loading;

        @Override
        public void begin() {
            assertFalse(loading);
            loading = true;
        }

        @Override
        public void end() {
            loading = false;
        }

        @Override
        public Bundle bundle() throws IOException {
            if (damaged) {
                throw new IOException("the bundle is damaged");
            }
            return Bundle.open(Fixture.bundle().toFile());
        }

        @Override
        public boolean wantsGpu() {
            return wantsGpu;
        }

        @Override
        public Double threshold() {
            return threshold;
        }

        @Override
        public Judge.Loaded load(Bundle bundle, boolean gpu) throws Exception {
            if (gpu && !gpuLoads) {
                throw new IOException("no driver");
            }
            loads++;
            return new Judge.Loaded() {
                @Override
                public float[] run(byte[] rgb) throws Exception {
                    if (gpu && !gpuRuns) {
                        throw new IOException("lost");
                    }
                    if (breaks instanceof Error) {
                        throw (Error) breaks;
                    }
                    if (breaks != null) {
                        throw (Exception) breaks;
                    }
                    float[] map = new float[rgb.length / 3];
                    Arrays.fill(map, gpu ? gpuSays : (rgb[0] & 255) / 255f);
                    return map;
                }

                @Override
                public void close() {
                    closed++;
                }
            };
        }

        @Override
        public String running(boolean gpu, Throwable refused) {
            return (gpu ? "GPU" : "CPU") + (refused == null ? "" : " since " + refused.getMessage());
        }

        @Override
        public String words(Throwable problem) {
            return problem instanceof OutOfMemoryError ? "memory is full" : problem.getMessage();
        }
    }

    /** Waits for all work, and returns the states reported. */
    private List<String> settled() throws Exception {
        worker.submit(() -> {}).get();
        for (Runnable message; (message = main.poll()) != null; ) {
            message.run();
        }
        List<String> now = new ArrayList<>(states);
        states.clear();
        return now;
    }

    private static List<String> only(String words) {
        return Collections.singletonList(words);
    }

    @AfterEach
    void stop() {
        worker.shutdownNow();
    }

    @Test
    void aImageIsJudgedByTheChosenThresholdOrTheBundlesOwn() throws Exception {
        judge.listen(screen);
        judge.resume();
        assertEquals(only("ready on CPU"), settled());
        judge.judge(() -> new Grey(128));
        assertEquals(only("anomalous on CPU"), settled());
        phone.threshold = 0.6;
        judge.pause();
        judge.resume();
        settled();
        judge.judge(() -> new Grey(128));
        assertEquals(only("normal on CPU"), settled());
        double own = Bundle.open(Fixture.bundle().toFile()).manifest.decisionThreshold.value;
        phone.threshold = null;
        judge.pause();
        judge.resume();
        settled();
        judge.judge(() -> new Grey((int) (own * 255) - 2));
        judge.judge(() -> new Grey((int) (own * 255) + 2));
        assertEquals(Arrays.asList("normal on CPU", "anomalous on CPU"), settled());
        assertFalse(phone.loading);
    }

    /** After another screen and a rotation, the camera's frames are judged again. */
    @Test
    void whatWasPausedIsOpenedAgainByTheScreenThatComesBack() throws Exception {
        judge.listen(screen);
        judge.resume();
        judge.listen(null);
        judge.pause();
        settled();
        assertEquals(1, phone.closed);
        judge.judge(() -> new Grey(0));
        assertEquals(Collections.emptyList(), settled());
        judge.listen(screen);
        judge.resume();
        judge.judge(() -> new Grey(255));
        assertEquals("anomalous on CPU", settled().get(2));
        assertEquals(2, phone.loads);
    }

    @Test
    void aRotationOpensNothingAgainAndLosesNoWords() throws Exception {
        judge.listen(screen);
        judge.resume();
        settled();
        judge.listen(null);
        judge.listen(screen);
        judge.resume();
        assertEquals(only("ready on CPU"), settled());
        judge.judge(() -> new Grey(255));
        judge.listen(null); // the verdict arrives while there is no screen
        settled();
        judge.listen(screen);
        assertEquals(only("anomalous on CPU"), settled());
        judge.fail("another app took the camera");
        settled();
        judge.listen(null);
        judge.listen(screen);
        assertEquals(only("failed: another app took the camera"), settled());
        judge.judge(() -> new Grey(0));
        assertEquals(only("normal on CPU"), settled());
        assertEquals(1, phone.loads);
    }

    @Test
    void aGpuThatRefusesOrFailsInItsFirstRunGivesWayToTheCpu() throws Exception {
        phone.wantsGpu = true;
        judge.listen(screen);
        judge.resume();
        assertEquals(only("ready on GPU"), settled());
        judge.pause();
        phone.gpuRuns = false;
        judge.resume();
        assertTrue(settled().contains("ready on CPU since lost"));
        assertEquals(2, phone.closed, "the GPU's model is given back");
        judge.judge(() -> new Grey(255));
        assertEquals(only("anomalous on CPU since lost"), settled());
        phone.gpuRuns = true;
        phone.gpuSays = Float.NaN;
        judge.pause();
        judge.resume();
        judge.judge(() -> new Grey(0));
        List<String> words = settled();
        String last = words.get(words.size() - 1);
        assertTrue(last.startsWith("normal on CPU since the anomaly map is not finite"), last);
        phone.gpuLoads = false;
        judge.pause();
        judge.resume();
        judge.judge(() -> new Grey(0));
        words = settled();
        assertEquals("normal on CPU since no driver", words.get(words.size() - 1));
    }

    @Test
    void aGpuThatIsLostLaterIsSaidAndTheNextImageRunsOnTheCpu() throws Exception {
        phone.wantsGpu = true;
        judge.listen(screen);
        judge.resume();
        settled();
        phone.gpuRuns = false;
        judge.judge(() -> new Grey(0));
        assertEquals(only("failed: lost"), settled());
        judge.judge(() -> new Grey(255));
        assertEquals(Arrays.asList("ready on CPU since lost", "anomalous on CPU since lost"), settled());
    }

    @Test
    void whatFailsIsSaidAndTriedAgainByTheNextImage() throws Exception {
        phone.damaged = true;
        judge.listen(screen);
        judge.resume();
        assertEquals(only("failed: the bundle is damaged"), settled());
        assertFalse(phone.loading);
        phone.damaged = false;
        phone.breaks = new IOException("broken model");
        judge.judge(() -> new Grey(0));
        assertEquals(only("failed: broken model"), settled());
        assertEquals(phone.loads, phone.closed, "no broken model stays");
        phone.breaks = null;
        judge.judge(() -> {
            throw new IOException("no image");
        });
        assertEquals(Arrays.asList("ready on CPU", "failed: no image"), settled());
        phone.breaks = new OutOfMemoryError();
        judge.judge(() -> new Grey(0));
        assertEquals(only("failed: memory is full"), settled());
        assertEquals(phone.loads, phone.closed, "its memory is given back");
        phone.breaks = null;
        judge.judge(() -> new Grey(0));
        assertEquals(Arrays.asList("ready on CPU", "normal on CPU"), settled());
        assertFalse(judge.busy());
    }

    @Test
    void afterTheEndNothingIsAsked() throws Exception {
        judge.listen(screen);
        judge.resume();
        settled();
        judge.shutDown();
        judge.judge(() -> new Grey(0));
        judge.pause();
        assertTrue(worker.awaitTermination(10, TimeUnit.SECONDS));
        assertEquals(1, phone.closed);
        assertFalse(judge.busy());
    }
}
