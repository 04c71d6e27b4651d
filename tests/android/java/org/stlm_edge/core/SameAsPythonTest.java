package org.stlm_edge.core;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** Compares the core's results with those that Python has written. */
class SameAsPythonTest {
    /** Files are named number-size-orientation.png; beside each is the square that Python resizes it to. */
    @Test
    void resizeAndOrientation() throws Exception {
        int cases = 0;
        try (Stream<Path> files = Files.list(Fixture.FOLDER.resolve("resize"))) {
            for (Path file : (Iterable<Path>) files.filter(path -> path.toString().endsWith(".png"))::iterator) {
                String stem = file.getFileName().toString().replace(".png", "");
                int size = Integer.parseInt(stem.split("-")[1]);
                int exif = Integer.parseInt(stem.split("-")[2]);
                byte[] expected = Files.readAllBytes(file.resolveSibling(stem + ".rgb"));
                byte[] found = Resize.toSquare(Fixture.decode(Files.readAllBytes(file)), size);
                found = Orientation.upright(found, size, exif);
                assertEquals(expected.length, found.length, stem);
                int largest = 0;
                for (int i = 0; i < found.length; i++) {
                    largest = Math.max(largest, Math.abs((found[i] & 255) - (expected[i] & 255)));
                }
                assertTrue(largest <= 1, stem + " differs by " + largest);
                cases++;
            }
        }
        assertTrue(cases >= 20, cases + " images");
    }

    /** A frame of 37×21 with padded rows and interleaved chroma, as cameras have it. */
    @Test
    void cameraFrames() throws Exception {
        byte[] bright = Files.readAllBytes(Fixture.FOLDER.resolve("frame.y"));
        byte[] colour = Files.readAllBytes(Fixture.FOLDER.resolve("frame.uv"));
        byte[] expected = Files.readAllBytes(Fixture.FOLDER.resolve("frame.rgb"));
        byte[] v = Arrays.copyOfRange(colour, 1, colour.length);
        Image frame = new YuvImage(37, 21, bright, 48, colour, v, 64, 2);
        int[] row = new int[frame.width()];
        for (int y = 0; y < frame.height(); y++) {
            frame.row(y, row);
            for (int x = 0; x < row.length; x++) {
                for (int channel = 0; channel < 3; channel++) {
                    int found = row[x] >> (16 - 8 * channel) & 255;
                    assertEquals(expected[(y * 37 + x) * 3 + channel] & 255, found, 1, y + ", " + x);
                }
            }
        }
    }

    @Test
    void scoresAndVerdicts() throws Exception {
        for (String line : Fixture.text("scores.txt").trim().split("\n")) {
            String[] parts = line.split(" ");
            float[] map = Fixture.floats(Fixture.FOLDER.resolve("maps").resolve(parts[0]));
            Verdict verdict = Verdict.of(map, Double.parseDouble(parts[2]));
            assertEquals(Double.parseDouble(parts[1]), verdict.score, 1e-12, line);
            assertEquals(Boolean.parseBoolean(parts[3]), verdict.anomalous, line);
        }
    }

    @Test
    void heatmapColours() throws Exception {
        Manifest.DecisionThreshold decisionThreshold = Bundle.open(Fixture.bundle().toFile()).manifest.decisionThreshold;
        float[] map = Fixture.floats(Fixture.FOLDER.resolve("maps/ramp.f32"));
        int[] expected = new int[map.length];
        byte[] argb = Files.readAllBytes(Fixture.FOLDER.resolve("ramp.argb"));
        ByteBuffer.wrap(argb).order(ByteOrder.LITTLE_ENDIAN).asIntBuffer().get(expected);
        int[] found = Heatmap.layer(map, decisionThreshold, 0.65);
        for (int i = 0; i < found.length; i++) {
            assertEquals(Integer.toHexString(expected[i]), Integer.toHexString(found[i]), "map value " + map[i]);
        }
    }

    @Test
    void percentiles() throws Exception {
        for (String line : Fixture.text("percentiles.txt").trim().split("\n")) {
            double[] numbers = Stream.of(line.split(" ")).mapToDouble(Double::parseDouble).toArray();
            Latency latency = new Latency(Arrays.copyOfRange(numbers, 4, numbers.length));
            assertEquals(numbers[0], latency.p50);
            assertEquals(numbers[1], latency.p90);
            assertEquals(numbers[2], latency.p99);
            assertEquals(numbers[3], latency.p90EarlyStopping == null ? -1 : latency.p90EarlyStopping);
        }
    }

    /** Each line: accepted or refused by Python's reader, and the manifest in base64. */
    @Test
    void manifestsAreAcceptedAndRefusedAlike() throws Exception {
        List<String> different = new ArrayList<>();
        int refused = 0;
        String[] lines = Fixture.text("manifests.txt").trim().split("\n");
        for (String line : lines) {
            byte[] manifest = Base64.getDecoder().decode(line.split(" ")[1]);
            String answer = "accepted";
            try {
                Manifest.parse(manifest);
            } catch (BundleException problem) {
                answer = "refused";
                refused++;
                assertTrue(problem.getMessage().startsWith("manifest.json: "), problem.getMessage());
                assertTrue(problem.getMessage().length() < 400, problem.getMessage());
            }
            if (!line.startsWith(answer)) {
                different.add(answer + " here: " + new String(manifest, "UTF-8"));
            }
        }
        assertTrue(different.isEmpty(), different.size() + " differ; " + String.join("\n", different));
        assertTrue(refused > 100 && refused < lines.length, refused + " of " + lines.length + " refused");
    }

    /** Replays a model's maps; Python compares the bench.json with its own parity. */
    @Test
    void benchFile() throws Exception {
        Bundle bundle = Bundle.open(Fixture.bundle().toFile());
        List<Manifest.Golden> golden = bundle.manifest.golden;
        List<byte[]> tensors = new ArrayList<>();
        for (Manifest.Golden entry : golden) {
            tensors.add(bundle.read(entry.tensor));
        }
        Model playback = rgb -> {
            for (int i = 0; i < tensors.size(); i++) {
                if (Arrays.equals(rgb, tensors.get(i))) {
                    return Fixture.floats(Fixture.FOLDER.resolve("answers").resolve(i + ".f32"));
                }
            }
            throw new AssertionError("an unknown image");
        };
        SelfCheck check = checked(bundle, playback, new SelfCheck.Effort(25, 0, false));
        BenchFile.Device device = new BenchFile.Device();
        device.packages = Collections.singletonMap("gson", "2.10");
        BenchFile.Row row = new BenchFile.Row();
        row.name = "playback";
        row.bundle = "bundle";
        row.runtime = "litert";
        row.manifest = bundle.manifest;
        row.check = check;
        BenchFile.write(Fixture.FOLDER.resolve("bench.json").toFile(), "9.9", "self-check", device, row);
        row.check = checked(bundle, playback, new SelfCheck.Effort(25, 1, true));
        row.peakMemoryMb = 123.4;
        device.governor = "schedutil";
        device.powerMode = "battery saver";
        BenchFile.write(Fixture.FOLDER.resolve("bench-wrong.json").toFile(), "9.9", "self-check", device, row);
        row.check = null;
        row.manifest = null;
        row.failure = "the bundle is damaged";
        BenchFile.write(Fixture.FOLDER.resolve("bench-failed.json").toFile(), "9.9", "self-check", device, row);
    }

    private static SelfCheck checked(Bundle bundle, Model model, SelfCheck.Effort effort) throws Exception {
        Vitals.Meters meters = new Vitals.Meters() {
            @Override
            public Double milliwatts() {
                return 2000.0;
            }

            @Override
            public Double storedMillijoules() {
                return null;
            }

            @Override
            public Integer thermalStatus() {
                return 1;
            }
        };
        return SelfCheck.run(bundle, model, Fixture::decode, effort, meters, (what, done, of) -> {});
    }

    /** Each line: the file in base64, and its size and orientation, the reason to refuse it, or ? if damaged. */
    @Test
    void headersOfImages() throws Exception {
        StringBuilder answers = new StringBuilder();
        for (String line : Fixture.text("headers.txt").trim().split("\n")) {
            String expected = line.split(" ", 2)[1];
            ByteBuffer file = ByteBuffer.wrap(Base64.getDecoder().decode(line.split(" ")[0]));
            String answer;
            try {
                ImageHeader header = ImageHeader.read(file);
                answer = header.width + " " + header.height + " " + header.orientation;
                assertTrue(expected.equals("?") || expected.equals(answer), expected + ", not " + answer);
            } catch (IOException refused) {
                answer = refused.getMessage();
                assertTrue(expected.equals("?") || answer.contains(expected), expected + ", not " + answer);
            }
            answers.append(answer).append('\n');
        }
        Files.write(Fixture.FOLDER.resolve("headers-java.txt"), answers.toString().getBytes("UTF-8"));
    }

    /** Each line: the file in base64, and the entries that Python reads as JSON in base64, or "refused". */
    @Test
    void metadataOfTfliteFiles() throws Exception {
        Path file = Fixture.FOLDER.resolve("model.tflite");
        int refused = 0;
        String[] lines = Fixture.text("metadata.txt").trim().split("\n");
        for (String line : lines) {
            Files.write(file, Base64.getDecoder().decode(line.split(" ")[0]));
            String expected = line.split(" ")[1];
            try {
                Map<String, String> found = TfliteMetadata.read(file.toFile());
                assertNotEquals("refused", expected, "" + found);
                assertEquals(Json.parse(Base64.getDecoder().decode(expected), "expected"), found);
            } catch (BundleException problem) {
                assertEquals("refused", expected, problem.getMessage());
                assertTrue(problem.getMessage().contains("not an intact TFLite file"), problem.getMessage());
                assertFalse(problem.getMessage().contains("\n"));
                refused++;
            }
        }
        assertTrue(refused > 50 && refused < lines.length - 50, refused + " of " + lines.length + " refused");
    }

    @Test
    void aThresholdIsANumberOrRefused() throws Exception {
        assertEquals(0.25, TfliteMetadata.threshold(Collections.singletonMap("stlm_edge.threshold", "0.25")));
        for (String odd : new String[] {"", "high", "NaN", "Infinity"}) {
            assertThrows(BundleException.class,
                    () -> TfliteMetadata.threshold(Collections.singletonMap("stlm_edge.threshold", odd)));
        }
        assertThrows(BundleException.class, () -> TfliteMetadata.threshold(Collections.emptyMap()));
    }
}
