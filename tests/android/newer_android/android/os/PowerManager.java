package android.os;

/** Signatures with those added by API 29: the android.jar used here is of API 23. */
public class PowerManager {
    public boolean isPowerSaveMode() {
        return false;
    }

    public int getCurrentThermalStatus() {
        return 0;
    }
}
