package archive

import (
	"fmt"
	"path"
	"strings"
)

// What is written must be taken again, so these hold for both.
const (
	maxEntries = 2 << 20
	// maxName leaves room before it for where the pool has the container.
	maxName   = 3800
	maxTarget = 4096     // of a symbolic link, as the kernel has it
	maxXattr  = 64 << 10 // one, as the kernel has it
	maxXattrs = 64
)

// checkSize refuses the nth path where it is too long or one too many.
func checkSize(n int, name string) error {
	if n > maxEntries {
		return fmt.Errorf("more than %d files do not fit into an archive", maxEntries)
	}
	if len(name) > maxName {
		return fmt.Errorf("the path %.200q... has %d bytes, and at most %d are possible: move or remove it", name, len(name), maxName)
	}
	return nil
}

// cleanName returns a path without what means nothing, and refuses one that
// leads elsewhere.
func cleanName(name string) (string, error) {
	if name == "" || strings.ContainsRune(name, 0) {
		return "", unsafef("%.200q is no path", name)
	}
	if err := checkSize(0, name); err != nil {
		return "", unsafef("%v", err)
	}
	if strings.HasPrefix(name, "/") {
		return "", unsafef("%.200q is absolute", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", unsafef("%.200q leads out", name)
		}
	}
	return path.Clean(name), nil
}

const xattrPrefix = "SCHILY.xattr."

// xattrs keeps extended attributes that a container may have.
func xattrs(records map[string]string) map[string]string {
	var kept map[string]string
	for k, v := range records {
		if attr, ok := strings.CutPrefix(k, xattrPrefix); ok && keepXattr(attr) && len(v) <= maxXattr && len(kept) < maxXattrs {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[k] = v
		}
	}
	return kept
}

func keepXattr(name string) bool {
	if len(name) > 255 || strings.ContainsAny(name, "=\x00") {
		return false
	}
	return strings.HasPrefix(name, "user.") || name == "security.capability" ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}
