package org.stlm_edge.demo;

import android.widget.SeekBar;

/** Listener that passes on a slider's position. */
final class Slider implements SeekBar.OnSeekBarChangeListener {
    interface Listener {
        void at(int value);
    }

    private final Listener listener;

    Slider(Listener listener) {
        this.listener = listener;
    }

    @Override
    public void onProgressChanged(SeekBar slider, int value, boolean byUser) {
        listener.at(value);
    }

    @Override
    public void onStartTrackingTouch(SeekBar slider) {}

    @Override
    public void onStopTrackingTouch(SeekBar slider) {}
}
