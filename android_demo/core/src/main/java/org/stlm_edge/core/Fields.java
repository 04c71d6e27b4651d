package org.stlm_edge.core;

import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;

/** Strict reader of one JSON object: each field is read once, and {@link #end} refuses any other. */
final class Fields {
    private final Map<?, ?> object;
    private final String where;
    private final Set<String> read = new HashSet<>();

    /** Makes a reader; {@code where}, the file's name and the path inside it, begins every message. */
    Fields(Object value, String where) throws BundleException {
        if (!(value instanceof Map)) {
            throw new BundleException(where + ": " + found(value) + ", expected an object");
        }
        object = (Map<?, ?>) value;
        this.where = where;
    }

    Object any(String key) throws BundleException {
        if (!object.containsKey(key)) {
            throw new BundleException(at(key) + ": missing");
        }
        read.add(key);
        return object.get(key);
    }

    Fields object(String key) throws BundleException {
        return new Fields(any(key), at(key));
    }

    List<?> list(String key, int least, int most) throws BundleException {
        Object value = any(key);
        if (!(value instanceof List)) {
            throw wrong(key, value, "a list");
        }
        int size = ((List<?>) value).size();
        if (size < least || size > most) {
            throw new BundleException(at(key) + ": " + size + " items, expected " + least + " to " + most);
        }
        return (List<?>) value;
    }

    String string(String key) throws BundleException {
        Object value = any(key);
        if (!(value instanceof String)) {
            throw wrong(key, value, "a string");
        }
        return (String) value;
    }

    String string(String key, Pattern pattern, String meaning) throws BundleException {
        String value = string(key);
        if (!pattern.matcher(value).matches()) {
            throw wrong(key, value, meaning);
        }
        return value;
    }

    String oneOf(String key, String... choices) throws BundleException {
        Object value = any(key);
        for (String choice : choices) {
            if (choice.equals(value)) {
                return choice;
            }
        }
        throw wrong(key, value, Arrays.toString(choices));
    }

    boolean bool(String key) throws BundleException {
        Object value = any(key);
        if (!(value instanceof Boolean)) {
            throw wrong(key, value, "a boolean");
        }
        return (Boolean) value;
    }

    double number(String key, double least, double most) throws BundleException {
        Object value = any(key);
        if (!(value instanceof Number)) {
            throw wrong(key, value, "a number");
        }
        double number = ((Number) value).doubleValue();
        if (number < least || number > most) {
            throw wrong(key, value, "at least " + least + (most == Double.MAX_VALUE ? "" : " and at most " + most));
        }
        return number;
    }

    double number(String key) throws BundleException {
        return number(key, -Double.MAX_VALUE, Double.MAX_VALUE);
    }

    long integer(String key, long least, long most) throws BundleException {
        Object value = any(key);
        if (!(value instanceof Long)) {
            throw wrong(key, value, "an integer");
        }
        if ((Long) value < least || (Long) value > most) {
            throw wrong(key, value, "an integer from " + least + " to " + most);
        }
        return (Long) value;
    }

    /** Refuses a shape other than the expected one. */
    void shape(String key, long... expected) throws BundleException {
        List<?> found = list(key, expected.length, expected.length);
        for (int i = 0; i < expected.length; i++) {
            if (!Long.valueOf(expected[i]).equals(found.get(i))) {
                throw wrong(key, found, Arrays.toString(expected));
            }
        }
    }

    /** Refuses fields that were not read. */
    void end() throws BundleException {
        for (Object key : object.keySet()) {
            if (!read.contains(key)) {
                throw new BundleException(at(Json.shorten(plain(key), 60)) + ": unknown key");
            }
        }
    }

    BundleException wrong(String key, Object value, String expected) {
        return new BundleException(at(key) + ": " + found(value) + ", expected " + expected);
    }

    String at(String key) {
        return where + ": " + key;
    }

    private static String found(Object value) {
        return "found " + Json.shorten(plain(value), 60);
    }

    private static String plain(Object value) {
        return Json.shorten(String.valueOf(value), 200).replaceAll("\\p{Cntrl}", "?");
    }
}
