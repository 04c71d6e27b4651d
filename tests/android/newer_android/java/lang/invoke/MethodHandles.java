package java.lang.invoke;

public class MethodHandles {
    public static class Lookup {}
}
