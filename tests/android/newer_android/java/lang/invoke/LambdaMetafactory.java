package java.lang.invoke;

/** Signatures that javac needs for lambdas; Android's build turns lambdas into classes. */
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
