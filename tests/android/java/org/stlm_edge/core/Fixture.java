package org.stlm_edge.core;

import java.awt.image.BufferedImage;
import java.io.ByteArrayInputStream;
import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Stream;
import javax.imageio.ImageIO;

/** Files that Python has written to the folder of the property {@code fixtures}. */
public final class Fixture {
    static final Path FOLDER = new File(System.getProperty("fixtures", "none")).toPath();

    private Fixture() {}

    static Path bundle() {
        return FOLDER.resolve("bundle");
    }

    /** Returns a copy of the bundle that a test may change. */
    static Path copy(Path place) throws IOException {
        return copy(bundle(), place);
    }

    static Path copy(Path from, Path place) throws IOException {
        try (Stream<Path> files = Files.walk(from)) {
            for (Path file : (Iterable<Path>) files::iterator) {
                Files.copy(file, place.resolve(from.relativize(file).toString()));
            }
        }
        return place;
    }

    static String text(String name) throws IOException {
        return new String(Files.readAllBytes(FOLDER.resolve(name)), StandardCharsets.UTF_8);
    }

    public static float[] floats(Path file) throws IOException {
        byte[] data = Files.readAllBytes(file);
        float[] values = new float[data.length / 4];
        ByteBuffer.wrap(data).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(values);
        return values;
    }

    public static Image decode(byte[] png) throws IOException {
        return image(ImageIO.read(new ByteArrayInputStream(png)));
    }

    static Image image(BufferedImage image) {
        if (image == null) {
            return null;
        }
        return new Image() {
            @Override
            public int width() {
                return image.getWidth();
            }

            @Override
            public int height() {
                return image.getHeight();
            }

            @Override
            public void row(int y, int[] argb) {
                image.getRGB(0, y, image.getWidth(), 1, argb, 0, image.getWidth());
            }
        };
    }
}
