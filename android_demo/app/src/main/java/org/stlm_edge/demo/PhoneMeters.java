package org.stlm_edge.demo;

import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.os.BatteryManager;
import android.os.Build;
import android.os.PowerManager;
import org.stlm_edge.core.Vitals;

/** Battery gauge and thermal status of Android. The battery reports nothing while a charger is connected. */
final class PhoneMeters implements Vitals.Meters {
    private final Context context;
    private final BatteryManager battery;
    private final PowerManager power;

    PhoneMeters(Context context) {
        this.context = context;
        battery = (BatteryManager) context.getSystemService(Context.BATTERY_SERVICE);
        power = (PowerManager) context.getSystemService(Context.POWER_SERVICE);
    }

    @Override
    public Double milliwatts() {
        Intent state = onBattery();
        int microamperes = battery.getIntProperty(BatteryManager.BATTERY_PROPERTY_CURRENT_NOW);
        int millivolts = state == null ? 0 : state.getIntExtra(BatteryManager.EXTRA_VOLTAGE, 0);
        if (state == null || microamperes == Integer.MIN_VALUE || microamperes == 0 || millivolts <= 0) {
            return null;
        }
        return Math.abs((double) microamperes) * millivolts / 1e6; // the sign differs between phones
    }

    @Override
    public Double storedMillijoules() {
        long nanowattHours = battery.getLongProperty(BatteryManager.BATTERY_PROPERTY_ENERGY_COUNTER);
        return onBattery() == null || nanowattHours <= 0 ? null : Double.valueOf(nanowattHours * 3.6e-3);
    }

    @Override
    public Integer thermalStatus() {
        return Build.VERSION.SDK_INT < 29 ? null : Integer.valueOf(power.getCurrentThermalStatus());
    }

    /** Returns the battery's state; null while the phone is charging. */
    private Intent onBattery() {
        Intent state = context.registerReceiver(null, new IntentFilter(Intent.ACTION_BATTERY_CHANGED));
        return state == null || state.getIntExtra(BatteryManager.EXTRA_PLUGGED, -1) != 0 ? null : state;
    }
}
