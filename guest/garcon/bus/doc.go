// Package bus is what programs in the container find on their session's
// bus and the host's desktop does: it keeps the screen on
// (org.freedesktop.ScreenSaver) and has a person choose files (a backend of
// xdg-desktop-portal's FileChooser).
//
// The programs are the container's, and not trusted: what they may have open
// at once is bounded, and ends with their place on the bus. The bus may go away
// and come back.
package bus
