package android.content;

/** What the app's LiteRtModel asks of it, on a JVM. */
public class Context {
    public final String getString(int id, Object... values) {
        return "string " + id + " " + java.util.Arrays.toString(values);
    }
}
