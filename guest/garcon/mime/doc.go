// Package mime tells which MIME type goes with which extension of file names,
// from the caches that update-mime-database writes.
package mime
