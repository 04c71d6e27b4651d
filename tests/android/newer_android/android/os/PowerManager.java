package android.os;

/** With what API 29 added to it, signatures alone: the android.jar at hand is of API 23. */
public class PowerManager {
    public boolean isPowerSaveMode() {
        return false;
    }

    public int getCurrentThermalStatus() {
        return 0;
    }
}
