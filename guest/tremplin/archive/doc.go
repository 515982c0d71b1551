// Package archive reads and writes containers as archives: metadata.yaml and
// rootfs, as Incus has its images. What it reads is hostile, so an archive is
// never handed on as it came: it is read entry by entry, and written again with
// what is allowed.
package archive
