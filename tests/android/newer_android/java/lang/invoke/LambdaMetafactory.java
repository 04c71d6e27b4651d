package java.lang.invoke;

/** What javac asks for when it meets a lambda, signatures alone; Android's build turns lambdas into classes. */
public class LambdaMetafactory {
    public static CallSite metafactory(
            MethodHandles.Lookup caller, String name, MethodType type, MethodType erased, MethodHandle target,
            MethodType instantiated) {
        return null;
    }

    public static CallSite altMetafactory(
            MethodHandles.Lookup caller, String name, MethodType type, Object... more) {
        return null;
    }
}
