package org.stlm_edge.core;

import java.io.File;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Metadata of a TFLite file, by which a file without its bundle has its threshold: {@code stlm_edge.threshold} and
 * more, all strings.
 *
 * <p>The file is one FlatBuffer whose root is the table Model: field 2 its graphs, 4 its buffers, 6 its metadata,
 * tables of a name (0) and a buffer's number (1); a buffer has its data (0). Ours is named {@code stlm_edge}, its data
 * a JSON object of strings. Only that is read, and all offsets are checked.
 */
public final class TfliteMetadata {
    private static final String NAME = "stlm_edge";
    private static final int MAX_BYTES = 1 << 20;
    private static final int MAX_ENTRIES = 64; // of all metadata in the file
    private static final int MAX_BUFFERS = 1 << 20;
    private static final int GRAPHS = 2;
    private static final int BUFFERS = 4;
    private static final int METADATA = 6;

    private final RandomAccessFile file;

    private TfliteMetadata(RandomAccessFile file) {
        this.file = file;
    }

    /**
     * Reads our entries; empty if the file has no such buffer.
     *
     * @throws BundleException if it is not an intact TFLite file
     * @throws IOException if it cannot be read
     */
    public static Map<String, String> read(File file) throws IOException {
        try (RandomAccessFile opened = new RandomAccessFile(file, "r")) {
            return new TfliteMetadata(opened).entries();
        } catch (BundleException problem) {
            throw new BundleException(file + ": not an intact TFLite file (" + problem.getMessage()
                    + "); copy it again or export it again");
        }
    }

    /** Returns the threshold of {@link #read}'s entries. Throws BundleException if there is none. */
    public static double threshold(Map<String, String> entries) throws BundleException {
        String text = entries.get("stlm_edge.threshold");
        try {
            double threshold = Double.parseDouble(String.valueOf(text));
            if (threshold >= -Double.MAX_VALUE && threshold <= Double.MAX_VALUE) {
                return threshold;
            }
        } catch (NumberFormatException words) {
            // Reported below.
        }
        throw new BundleException("threshold: found " + (text == null ? "none" : Json.shorten(text, 40))
                + " in the model's metadata, expected a number; export the model again");
    }

    private Map<String, String> entries() throws IOException {
        byte[] identifier = bytes(4, 4);
        if (!new String(identifier, "ISO-8859-1").equals("TFL3")) {
            throw new BundleException("it does not say TFL3 at byte 4");
        }
        long model = number(0);
        long graphs = field(model, GRAPHS);
        if (graphs < 0 || vector(graphs, 4, MAX_BUFFERS) == 0) {
            throw new BundleException("it has no graph");
        }
        forward(forward(graphs) + 4); // table of the first
        long number = -1;
        long place = field(model, METADATA);
        long count = place < 0 ? 0 : vector(place, 4, MAX_ENTRIES);
        for (long i = 0; i < count; i++) {
            long entry = forward(forward(place) + 4 + 4 * i);
            if (isOurs(entry)) {
                if (number >= 0) {
                    throw new BundleException("duplicate metadata '" + NAME + "'");
                }
                long field = field(entry, 1);
                number = field < 0 ? 0 : number(field);
            }
        }
        return number < 0 ? new LinkedHashMap<>() : strings(content(model, number));
    }

    private boolean isOurs(long entry) throws IOException {
        long field = field(entry, 0);
        if (field < 0) {
            return false;
        }
        long length = vector(field, 1, Integer.MAX_VALUE);
        return length == NAME.length()
                && new String(bytes(forward(field) + 4, NAME.length()), "ISO-8859-1").equals(NAME);
    }

    private byte[] content(long model, long number) throws IOException {
        long buffers = field(model, BUFFERS);
        long data = -1;
        if (buffers >= 0 && number < vector(buffers, 4, MAX_BUFFERS)) {
            data = field(forward(forward(buffers) + 4 + 4 * number), 0);
        }
        if (data < 0) {
            throw new BundleException("buffer " + number + ", which the metadata names, is not there or empty");
        }
        return bytes(forward(data) + 4, (int) vector(data, 1, MAX_BYTES));
    }

    private static Map<String, String> strings(byte[] content) throws BundleException {
        Object value = Json.parse(content, "metadata");
        Map<String, String> entries = new LinkedHashMap<>();
        if (!(value instanceof Map)) {
            throw new BundleException("the metadata are not an object of strings");
        }
        for (Map.Entry<?, ?> entry : ((Map<?, ?>) value).entrySet()) {
            if (!(entry.getValue() instanceof String)) {
                throw new BundleException("the metadata are not an object of strings");
            }
            entries.put((String) entry.getKey(), (String) entry.getValue());
        }
        return entries;
    }

    /** Returns the position of a table's field; -1 if it has its default. */
    private long field(long table, int field) throws IOException {
        long vtable = table - (int) number(table);
        if (4 + 2 * field + 2 > twoBytes(vtable)) {
            return -1;
        }
        int offset = twoBytes(vtable + 4 + 2 * field);
        return offset == 0 ? -1 : table + offset;
    }

    /** Returns the length of a vector or string, checked to lie inside the file. */
    private long vector(long field, int item, int most) throws IOException {
        long start = forward(field);
        long count = number(start);
        if (start + 4 + count * item > file.length()) {
            throw new BundleException("the " + count + " items at byte " + start + " reach beyond the file's end");
        }
        if (count > most) {
            throw new BundleException(count + " items at byte " + start + ", at most " + most + " are allowed");
        }
        return count;
    }

    private long forward(long place) throws IOException {
        long offset = number(place);
        if (offset == 0) {
            throw new BundleException("the offset at byte " + place + " is 0");
        }
        return place + offset;
    }

    private long number(long place) throws IOException {
        byte[] four = bytes(place, 4);
        return (four[0] & 255) | (four[1] & 255) << 8 | (four[2] & 255) << 16 | (four[3] & 255L) << 24;
    }

    private int twoBytes(long place) throws IOException {
        byte[] two = bytes(place, 2);
        return (two[0] & 255) | (two[1] & 255) << 8;
    }

    private byte[] bytes(long place, int length) throws IOException {
        if (place < 0 || place > file.length() - length) {
            throw new BundleException("byte " + place + " is outside the file");
        }
        byte[] found = new byte[length];
        file.seek(place);
        file.readFully(found);
        return found;
    }
}
