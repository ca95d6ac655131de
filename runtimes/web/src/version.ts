/** The version of the runtime; it goes into every update. */
export const VERSION = "0.5.0";
