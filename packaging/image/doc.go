// Package image describes a built guest image: the directory that build.sh
// makes of a kernel, an initramfs and a read-only root, and the manifest in it
// that says what they are and where they came from.
//
// It builds nothing (the scripts beside it do) and starts nothing. mkmanifest
// writes manifests with it; whoever boots an image may check one.
package image
