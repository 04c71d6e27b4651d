package org.stlm_edge.demo;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import android.content.Context;
import com.google.ai.edge.litert.LiteRtException;
import java.io.File;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.Paths;
import java.util.Collections;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;
import org.stlm_edge.core.BenchFile;
import org.stlm_edge.core.Bundle;
import org.stlm_edge.core.BundleException;
import org.stlm_edge.core.Fixture;
import org.stlm_edge.core.GoldenImage;
import org.stlm_edge.core.SelfCheck;
import org.stlm_edge.core.TfliteMetadata;
import org.stlm_edge.core.Vitals;

/** Runs the app's model class on bundles exported for android with the real LiteRT. */
class LiteRtModelTest {
    private static final Path BUNDLES = new File(System.getProperty("bundles")).toPath();

    private static Bundle bundle(String name) throws Exception {
        return Bundle.open(BUNDLES.resolve(name).toFile());
    }

    /** Returns the exported bundles. */
    static Stream<String> precisions() {
        return Stream.of("fp32", "fp16", "int8").filter(precision -> Files.isDirectory(BUNDLES.resolve(precision)));
    }

    /** The maps of Python's interpreter are beside the bundle; Python compares the bench.json written here. */
    @ParameterizedTest
    @MethodSource("precisions")
    void anExportedBundleSaysWhatItSaysInPython(String precision) throws Exception {
        Bundle bundle = bundle(precision);
        long started = System.nanoTime();
        try (LiteRtModel model = new LiteRtModel(new Context(), bundle, false, 1)) {
            double loadMs = (System.nanoTime() - started) / 1e6;
            float largest = 0;
            for (int i = 0; i < bundle.manifest.golden.size(); i++) {
                GoldenImage golden = GoldenImage.read(bundle, bundle.manifest.golden.get(i), Fixture::decode);
                float[] expected = Fixture.floats(BUNDLES.resolve(precision + "-maps").resolve(i + ".f32"));
                float[] found = model.run(golden.tensor);
                assertEquals(expected.length, found.length);
                for (int place = 0; place < found.length; place++) {
                    largest = Math.max(largest, Math.abs(expected[place] - found[place]));
                }
            }
            assertTrue(largest < 1e-6, precision + " differs from Python's interpreter by " + largest);
            SelfCheck check = SelfCheck.run(bundle, model, Fixture::decode, new SelfCheck.Effort(20, 0, false),
                    Vitals.NONE, (what, done, of) -> {});
            assertEquals("", check.parity.problems());
            BenchFile.Device device = new BenchFile.Device();
            device.packages = Collections.emptyMap();
            BenchFile.Row row = new BenchFile.Row();
            row.name = row.bundle = precision;
            row.runtime = "litert";
            row.manifest = bundle.manifest;
            row.check = check;
            row.loadMs = loadMs;
            BenchFile.write(BUNDLES.resolve(precision + ".json").toFile(), "9.9", "self-check", device, row);
        }
    }

    @ParameterizedTest
    @MethodSource("precisions")
    void aLoneModelKnowsItsThreshold(String precision) throws Exception {
        Bundle bundle = bundle(precision);
        Map<String, String> entries = TfliteMetadata.read(bundle.artifact());
        assertEquals(bundle.manifest.exportedThreshold.value, TfliteMetadata.threshold(entries));
    }

    /** XNNPACK's pool has the requested number of threads, including the caller's. */
    @Test
    void theChosenThreadsRun() throws Exception {
        Bundle bundle = bundle("fp32");
        byte[] image = new byte[bundle.manifest.size * bundle.manifest.size * 3];
        int before = nativeThreads();
        for (int threads : new int[] {1, 2, 4}) {
            try (LiteRtModel model = new LiteRtModel(new Context(), bundle, false, threads)) {
                model.run(image);
                assertEquals(threads - 1, nativeThreads() - before, threads + " threads");
            }
        }
    }

    /** Returns the threads that Java did not start. */
    private static int nativeThreads() throws Exception {
        int count = 0;
        try (DirectoryStream<Path> tasks = Files.newDirectoryStream(Paths.get("/proc/self/task"))) {
            for (Path task : tasks) {
                count += new String(Files.readAllBytes(task.resolve("comm"))).trim().equals("java") ? 1 : 0;
            }
        }
        return count;
    }

    /** The app relies on this: a request for the GPU alone does not silently fall back to the CPU. */
    @Test
    void withoutAGpuTheGpuIsRefused() throws Exception {
        Bundle bundle = bundle("fp32");
        assertThrows(LiteRtException.class, () -> new LiteRtModel(new Context(), bundle, true, 1));
    }

    @Test
    void aClosedModelIsNotAskedAndCanBeClosedAgain() throws Exception {
        Bundle bundle = bundle("int8");
        LiteRtModel model = new LiteRtModel(new Context(), bundle, false, 1);
        model.close();
        model.close();
        byte[] image = new byte[bundle.manifest.size * bundle.manifest.size * 3];
        assertThrows(IllegalStateException.class, () -> model.run(image));
        try (LiteRtModel again = new LiteRtModel(new Context(), bundle, false, 1)) {
            assertEquals(image.length / 3, again.run(image).length);
        }
    }

    @Test
    void aBundleForAnotherRuntimeIsRefusedInWords() throws Exception {
        Bundle onnx = bundle("onnx");
        BundleException problem =
                assertThrows(BundleException.class, () -> new LiteRtModel(new Context(), onnx, false, 1));
        assertTrue(problem.getMessage().contains("onnxruntime"), problem.getMessage());
    }
}
