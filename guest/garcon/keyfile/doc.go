// Package keyfile reads the files that desktops keep their settings in: groups
// of keys, as in .desktop files and themes of icons. Any user of the container
// may have written them, so that all of it is bounded, and what it reads is a
// regular file or nothing.
package keyfile
