// Package icons finds the pictures of applications, by the icon theme
// specification: in the user's theme, in those that it inherits from, in
// hicolor, and without a theme.
//
// What it returns is a PNG or a plain SVG of at most 1 MiB, looked at before it
// is believed. A candidate that is anything else is passed over as if it were
// not there.
package icons
