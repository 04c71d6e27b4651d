package android.content;

/** Methods that the app's LiteRtModel calls, on a JVM. */
public class Context {
    public final String getString(int id, Object... values) {
        return "string " + id + " " + java.util.Arrays.toString(values);
    }
}
