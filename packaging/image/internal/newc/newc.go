// Package newc reads cpio archives of the format "newc" for tests: it is what
// checks that mkinitramfs writes what it says, from the format's description
// (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel)
// and not from the writer's code.
package newc

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Member is one entry of an archive.
type Member struct {
	Name         string
	Mode         uint32 // type and permissions, as in stat(2)
	UID, GID     uint32
	Mtime        uint32 // seconds since 1970
	Major, Minor uint32 // of a device node
	Data         []byte
}

const (
	magic      = "070701"
	headerSize = 110
	trailer    = "TRAILER!!!"
)

// Read returns the members of a whole archive. Anything after the trailer is
// an error, as is a missing trailer.
func Read(archive []byte) ([]Member, error) {
	var members []Member
	for at := 0; ; {
		if len(archive)-at < headerSize {
			return nil, errors.New("archive ends without a trailer")
		}
		header := string(archive[at : at+headerSize])
		if !strings.HasPrefix(header, magic) {
			return nil, fmt.Errorf("no header at offset %d", at)
		}
		var field [13]uint32
		for i := range field {
			n, err := strconv.ParseUint(header[6+8*i:14+8*i], 16, 32)
			if err != nil {
				return nil, fmt.Errorf("header at offset %d: %w", at, err)
			}
			field[i] = uint32(n)
		}
		size, nameSize := int(field[6]), int(field[11])
		dataAt := align(at + headerSize + nameSize)
		end := align(dataAt + size)
		if nameSize < 1 || end > len(archive) {
			return nil, fmt.Errorf("entry at offset %d reaches past the end", at)
		}
		name := string(archive[at+headerSize : at+headerSize+nameSize-1])
		if name == trailer {
			if end != len(archive) {
				return nil, fmt.Errorf("%d bytes after the trailer", len(archive)-end)
			}
			return members, nil
		}
		members = append(members, Member{
			Name: name, Mode: field[1], UID: field[2], GID: field[3], Mtime: field[5],
			Major: field[9], Minor: field[10], Data: archive[dataAt : dataAt+size],
		})
		at = end
	}
}

// align rounds up to 4 bytes.
func align(n int) int { return (n + 3) &^ 3 }
