package icons

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/auberge-vm/auberge/guest/garcon/keyfile"
)

// MaxSize bounds a picture, in bytes.
const MaxSize = 1 << 20

// A Picture is a file with an icon.
type Picture struct {
	Data []byte
	SVG  bool // else PNG
	Path string
}

var pngStart = []byte("\x89PNG\r\n\x1a\n")

var errNoPicture = errors.New("neither a PNG nor a plain SVG")

// load reads a picture, if the file is what its name says.
func load(path string) (*Picture, error) {
	ext := filepath.Ext(path)
	if ext != ".png" && ext != ".svg" {
		return nil, fmt.Errorf("%s: %w", path, errNoPicture)
	}
	data, _, err := keyfile.Read(path, MaxSize)
	if err != nil {
		return nil, err
	}
	ok := bytes.HasPrefix(data, pngStart)
	if ext == ".svg" {
		// A compressed one has no such word, nor has most of what is no SVG.
		ok = bytes.Contains(data, []byte("<svg")) || bytes.Contains(data, []byte(":svg"))
	}
	if !ok {
		return nil, fmt.Errorf("%s: %w", path, errNoPicture)
	}
	return &Picture{Data: data, SVG: ext == ".svg", Path: path}, nil
}
