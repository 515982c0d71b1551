package vmm

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// POSIX access control lists as the kernel keeps them in extended attributes:
// a version, then entries of tag, permissions and id, ordered by tag.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	aclVersion = 2
	aclNobody  = 1<<32 - 1 // the id of entries that have none

	aclOwner, aclUser, aclGroup, aclMask, aclOthers = 0x01, 0x02, 0x04, 0x10, 0x20

	aclExecute, aclWrite, aclRead = 1, 2, 4
)

// encodeACL gives the owner everything, one more user what perm says, and
// nobody else anything.
func encodeACL(user uint32, perm uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{
		{aclOwner, aclRead | aclWrite | aclExecute, aclNobody},
		{aclUser, perm, user},
		{aclGroup, 0, aclNobody},
		{aclMask, perm, aclNobody},
		{aclOthers, 0, aclNobody},
	} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// shareDir lets one more user pass through a directory of this process's user,
// and connect to the sockets that are made there from now on.
func shareDir(dir string, user uint32) error {
	for name, perm := range map[string]uint16{aclAccess: aclExecute, aclDefault: aclRead | aclWrite} {
		if err := unix.Setxattr(dir, name, encodeACL(user, perm), 0); err != nil {
			return fmt.Errorf("give user %d access to the VM's directory: %w", user, &os.PathError{Op: "set " + name, Path: dir, Err: err})
		}
	}
	return nil
}
