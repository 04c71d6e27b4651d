package android.media;

import java.io.IOException;
import java.io.InputStream;

/** What API 24 added to it, signatures alone: the android.jar at hand is of API 23. */
public class ExifInterface {
    public static final String TAG_ORIENTATION = "Orientation";

    public ExifInterface(InputStream file) throws IOException {}

    public int getAttributeInt(String tag, int otherwise) {
        return otherwise;
    }
}
