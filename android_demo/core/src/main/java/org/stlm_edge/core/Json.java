package org.stlm_edge.core;

import com.google.gson.stream.JsonReader;
import com.google.gson.stream.JsonToken;
import java.io.IOException;
import java.io.StringReader;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Strict JSON reader (RFC 8259): UTF-8, no duplicate keys, no infinite numbers, nothing after the value.
 *
 * <p>Gson parses; what it tolerates (raw control characters, {@code TRUE}, a byte order mark) is refused first.
 */
final class Json {
    private static final int MAX_DEPTH = 32;
    private static final String OUTSIDE_STRINGS = " \t\r\n{}[]:,+-.0123456789Eaeflnrstu";
    private static final String ESCAPES = "\"\\/bfnrtu";

    private Json() {}

    /** Returns a Map, List, String, Long, Double, Boolean or null. */
    static Object parse(byte[] data, String name) throws BundleException {
        try {
            String text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data)).toString();
            checkCharacters(text);
            JsonReader reader = new JsonReader(new StringReader(text));
            Object value = value(reader, 0);
            if (reader.peek() != JsonToken.END_DOCUMENT) {
                throw new IOException("unexpected text after the value");
            }
            return value;
        } catch (CharacterCodingException error) {
            throw new BundleException(name + ": not valid JSON: not UTF-8");
        } catch (IOException | IllegalStateException | NumberFormatException error) {
            String problem = String.valueOf(error.getMessage()).split("\n", 2)[0];
            throw new BundleException(name + ": not valid JSON: " + shorten(problem, 120));
        }
    }

    static String shorten(String text, int most) {
        return text.length() <= most ? text : text.substring(0, most - 3) + "...";
    }

    private static Object value(JsonReader reader, int depth) throws IOException {
        if (depth > MAX_DEPTH) {
            throw new IOException("nested too deeply");
        }
        switch (reader.peek()) {
            case BEGIN_OBJECT:
                Map<String, Object> object = new LinkedHashMap<>();
                reader.beginObject();
                while (reader.hasNext()) {
                    String key = reader.nextName();
                    if (object.containsKey(key)) {
                        throw new IOException("duplicate key in an object");
                    }
                    object.put(key, value(reader, depth + 1));
                }
                reader.endObject();
                return object;
            case BEGIN_ARRAY:
                List<Object> list = new ArrayList<>();
                reader.beginArray();
                while (reader.hasNext()) {
                    list.add(value(reader, depth + 1));
                }
                reader.endArray();
                return list;
            case STRING:
                return reader.nextString();
            case BOOLEAN:
                return reader.nextBoolean();
            case NULL:
                reader.nextNull();
                return null;
            default:
                return number(reader.nextString());
        }
    }

    private static Object number(String text) throws IOException {
        if (text.matches("-?[0-9]+") && text.length() <= 18) {
            return Long.valueOf(text);
        }
        double value = Double.parseDouble(text);
        if (Double.isInfinite(value)) {
            throw new IOException(shorten(text, 40) + " is too large a number");
        }
        return value;
    }

    private static void checkCharacters(String text) throws IOException {
        boolean inString = false;
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (inString && c == '\\') {
                if (++i < text.length() && ESCAPES.indexOf(text.charAt(i)) < 0) {
                    throw new IOException("unknown escape at character " + i);
                }
            } else if (c == '"') {
                inString = !inString;
            } else if (inString ? c < ' ' : OUTSIDE_STRINGS.indexOf(c) < 0) {
                throw new IOException("unexpected character " + (int) c + " at " + i);
            }
        }
    }
}
