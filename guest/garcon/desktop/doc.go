// Package desktop reads the .desktop files of applications: what they say, by
// which id they are known, which of them a desktop should show, and the command
// lines that they make of files. It runs nothing.
//
// What GLib tolerates is tolerated, because that is what applications were
// tried with: the last of two equal keys counts, unknown keys and groups do
// not matter, an unknown escape stays as it is. A file with a line that is no
// key, without Type or Name, or whose first group is another, is not valid.
package desktop
