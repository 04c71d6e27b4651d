package org.stlm_edge.core;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.io.SequenceInputStream;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.Arrays;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Invalid bundles are refused with a one-line message. */
class BundleTest {
    @TempDir
    Path folder;

    private Path bundle() throws IOException {
        return Fixture.copy(folder.resolve("bundle"));
    }

    private static String refusal(Path bundle) {
        BundleException problem = assertThrows(BundleException.class, () -> Bundle.open(bundle.toFile()));
        assertFalse(problem.getMessage().contains("\n"));
        return problem.getMessage();
    }

    private static Path artifact(Path bundle) throws IOException {
        return Bundle.open(bundle.toFile()).artifact().toPath();
    }

    @Test
    void anIntactBundleIsOpened() throws Exception {
        Path hidden = bundle().resolve(".DS_Store");
        Files.write(hidden, new byte[10]);
        Bundle bundle = Bundle.open(hidden.getParent().toFile());
        assertTrue(bundle.artifact().isFile());
        assertTrue(bundle.manifest.golden.size() >= 8);
    }

    @Test
    void oneChangedByteIsSeen() throws Exception {
        Path artifact = artifact(bundle());
        byte[] content = Files.readAllBytes(artifact);
        content[content.length / 2] ^= 1;
        Files.write(artifact, content);
        assertTrue(refusal(artifact.getParent()).contains("its content has changed"));
    }

    @Test
    void aTruncatedFileIsSeen() throws Exception {
        Path artifact = artifact(bundle());
        Files.write(artifact, Arrays.copyOf(Files.readAllBytes(artifact), 100));
        assertTrue(refusal(artifact.getParent()).contains("100 bytes, the manifest says"));
    }

    @Test
    void missingUnlistedAndEmptyFilesAreNamed() throws Exception {
        Path bundle = bundle();
        Files.write(bundle.resolve("golden/extra.png"), new byte[1]);
        assertTrue(refusal(bundle).startsWith("golden/extra.png: not listed"));
        Files.delete(bundle.resolve("golden/extra.png"));
        Files.delete(bundle.resolve("golden/01.png"));
        assertTrue(refusal(bundle).startsWith("golden/01.png: missing"));
        Files.write(bundle.resolve("manifest.json"), new byte[0]);
        assertThrows(IOException.class, () -> Bundle.open(bundle.toFile()));
        assertTrue(refusal(folder.resolve("nowhere")).contains("no such bundle folder"));
    }

    /** Artifacts of Core ML and OpenVINO are folders. */
    @Test
    void aBundleForAnotherDeviceIsRefusedByItsRuntimesName() throws Exception {
        String text = new String(Files.readAllBytes(bundle().resolve("manifest.json")), StandardCharsets.UTF_8);
        String file = Manifest.parse(text.getBytes(StandardCharsets.UTF_8)).artifact;
        String folder = text.replace('"' + file + '"', "\"model.mlpackage/" + file + '"')
                .replace("\"artifact\": \"model.mlpackage/" + file + '"', "\"artifact\": \"model.mlpackage\"")
                .replace("\"onnxruntime\"", "\"coreml\"");
        BundleException problem = assertThrows(
                BundleException.class, () -> Manifest.parse(folder.getBytes(StandardCharsets.UTF_8)));
        assertTrue(problem.getMessage().contains("made for coreml"), problem.getMessage());
    }

    @Test
    void linksAreRefused() throws Exception {
        Path bundle = bundle();
        Path image = bundle.resolve("golden/01.png");
        Path outside = folder.resolve("outside.png");
        Files.move(image, outside);
        Files.createSymbolicLink(image, outside);
        assertTrue(refusal(bundle).contains("holds no links"));
        Files.delete(image);
        Files.move(outside, image);
        Files.move(bundle.resolve("golden"), folder.resolve("golden"));
        Files.createSymbolicLink(bundle.resolve("golden"), folder.resolve("golden"));
        assertTrue(refusal(bundle).contains("holds no links"));
    }

    @Test
    void anEndlessManifestIsNotReadToItsEnd() {
        InputStream endless = new InputStream() {
            @Override
            public int read() {
                return ' ';
            }

            @Override
            public int read(byte[] buffer, int from, int count) {
                Arrays.fill(buffer, from, from + count, (byte) ' ');
                return count;
            }
        };
        IOException problem =
                assertThrows(IOException.class, () -> Bundle.install(path -> endless, folder.resolve("b").toFile()));
        assertTrue(problem.getMessage().contains("the limit for this file"));
    }

    @Test
    void anInstalledBundleIsWholeOrTheOldOneStays() throws Exception {
        Path from = Fixture.bundle();
        Path to = folder.resolve("installed");
        Bundle installed = Bundle.install(path -> open(from, path), to.toFile());
        assertEquals(to.toRealPath(), installed.folder.toPath());
        Bundle.Source cut = path -> {
            InputStream file = open(from, path);
            return path.endsWith(".f32") ? new ByteArrayInputStream(new byte[3]) : file;
        };
        Bundle.Source longer = path -> {
            InputStream file = open(from, path);
            return path.endsWith(".f32") ? new SequenceInputStream(file, new ByteArrayInputStream(new byte[1])) : file;
        };
        Bundle.Source without = path -> open(path.endsWith(".f32") ? folder : from, path);
        for (Bundle.Source source : Arrays.asList(cut, longer, without)) {
            assertThrows(BundleException.class, () -> Bundle.install(source, to.toFile()));
            Bundle.open(to.toFile());
            assertFalse(Files.exists(folder.resolve("installed.new")));
        }
        Bundle.install(path -> open(from, path), to.toFile());
        Bundle.open(to.toFile());
    }

    private static InputStream open(Path folder, String path) throws IOException {
        try {
            return Files.newInputStream(folder.resolve(path));
        } catch (NoSuchFileException missing) {
            throw new FileNotFoundException(path);
        }
    }

    /** Random damage to every golden file gives a result or a BundleException, in little memory. */
    @Test
    void damagedGoldenFilesAreRefused() throws Exception {
        Path bundle = bundle();
        Bundle opened = Bundle.open(bundle.toFile());
        Manifest.Golden entry = opened.manifest.golden.get(0);
        Random random = new Random(0);
        for (String path : new String[] {entry.image, entry.tensor, entry.map}) {
            byte[] intact = Files.readAllBytes(bundle.resolve(path));
            for (int turn = 0; turn < 50; turn++) {
                int length = turn % 2 == 0 ? random.nextInt(2 * intact.length) : intact.length;
                byte[] damaged = Arrays.copyOf(intact, length);
                if (damaged.length > 0) {
                    damaged[random.nextInt(damaged.length)] ^= (byte) (1 + random.nextInt(255));
                }
                Files.write(bundle.resolve(path), damaged);
                assertThrows(BundleException.class, () -> GoldenImage.read(opened, entry, Fixture::decode));
            }
            Files.write(bundle.resolve(path), intact);
        }
        GoldenImage.read(opened, entry, Fixture::decode);
    }

    /** Random bytes, and the intact manifest with bytes changed, removed and repeated. */
    @Test
    void anyBytesAreAManifestOrRefused() throws Exception {
        byte[] intact = Files.readAllBytes(Fixture.bundle().resolve("manifest.json"));
        Random random = new Random(1);
        int refused = 0;
        for (int turn = 0; turn < 3000; turn++) {
            byte[] bytes = intact.clone();
            for (int change = random.nextInt(4); change >= 0; change--) {
                bytes[random.nextInt(bytes.length)] = (byte) random.nextInt(256);
            }
            if (turn % 3 == 1) {
                bytes = Arrays.copyOf(bytes, random.nextInt(bytes.length));
            } else if (turn % 3 == 2) {
                bytes = new byte[random.nextInt(300)];
                for (int i = 0; i < bytes.length; i++) {
                    bytes[i] = (byte) "{}[]\",:0.9eE-truefalsn\\u \n".charAt(random.nextInt(27) % 26);
                }
            }
            try {
                Manifest.parse(bytes);
            } catch (BundleException problem) {
                refused++;
            }
        }
        assertTrue(refused > 2500, refused + " refused");
    }

    @Test
    void deepAndWideJsonIsRefusedCheaply() {
        for (String part : new String[] {"[", "{\"a\":", "[[],", "\"", "1", "{\"", "-", "\\"}) {
            StringBuilder text = new StringBuilder();
            while (text.length() < 1_000_000) {
                text.append(part);
            }
            byte[] bytes = text.toString().getBytes(StandardCharsets.UTF_8);
            BundleException problem = assertThrows(BundleException.class, () -> Manifest.parse(bytes));
            assertTrue(problem.getMessage().length() < 400, problem.getMessage());
        }
        assertThrows(BundleException.class, () -> Manifest.parse(new byte[Manifest.MAX_BYTES + 1]));
    }

    @Test
    void aHugeImageIsRefusedByItsHeader() throws Exception {
        Path bundle = bundle();
        Manifest.Golden entry = Bundle.open(bundle.toFile()).manifest.golden.get(0);
        byte[] png = Files.readAllBytes(bundle.resolve(entry.image));
        png[16] = 0x10; // width
        Files.write(bundle.resolve(entry.image), png);
        Path manifest = bundle.resolve("manifest.json");
        String text = new String(Files.readAllBytes(manifest), StandardCharsets.UTF_8);
        String before = Bundle.open(Fixture.bundle().toFile()).manifest.files.get(entry.image).sha256;
        String after = String.format("%064x", new BigInteger(1, MessageDigest.getInstance("SHA-256").digest(png)));
        Files.write(manifest, text.replace(before, after).getBytes(StandardCharsets.UTF_8));
        Bundle changed = Bundle.open(bundle.toFile());
        GoldenImage.Decoder decoder = data -> {
            throw new AssertionError("was decoded");
        };
        BundleException problem =
                assertThrows(BundleException.class, () -> GoldenImage.read(changed, entry, decoder));
        assertTrue(problem.getMessage().contains("more than 1000000 pixels"), problem.getMessage());
    }
}
