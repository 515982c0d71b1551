package desktop

import (
	"errors"
	"fmt"

	"github.com/auberge-vm/auberge/guest/garcon/keyfile"
)

// MaxFile bounds a .desktop file, as on ChromeOS.
const MaxFile = 10 << 20

const (
	// maxKeys bounds the keys of the group that is read.
	maxKeys = 16384
	// maxList bounds a list: MIME types, categories.
	maxList = 4096
	// maxLocales bounds the translations of one key.
	maxLocales = 512
)

const group = "Desktop Entry"

// Text is a string by locale; "" is the default.
type Text map[string]string

// Lists are lists of strings by locale.
type Lists map[string][]string

// An Entry is what a .desktop file says of its application.
type Entry struct {
	// Path is where the file lies.
	Path string

	Type     string
	Name     Text
	Comment  Text
	Keywords Lists
	Icon     string

	TryExec, Exec string
	Dir           string // the key Path
	WMClass       string

	NoDisplay, Hidden       bool
	Terminal, StartupNotify bool

	MimeTypes, Categories []string
	OnlyShowIn, NotShowIn []string
	onlyShowIn            bool // the key is there
}

// Load reads the entry of a file.
func Load(path string) (*Entry, error) {
	data, _, err := keyfile.Read(path, MaxFile)
	if err != nil {
		return nil, err
	}
	e, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s is no valid .desktop file: %w", path, err)
	}
	e.Path = path
	return e, nil
}

// Parse reads an entry.
func Parse(data []byte) (*Entry, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%d bytes, where %d are read at most", len(data), MaxFile)
	}
	e := &Entry{Name: Text{}, Comment: Text{}, Keywords: Lists{}}
	keys, first := 0, ""
	err := keyfile.Scan(data, func(l keyfile.Line) error {
		if first == "" {
			first = l.Group
		}
		if first != group {
			return fmt.Errorf("the first group is [%s], not [%s]", first, group)
		}
		if l.Group != group {
			return nil
		}
		if keys++; keys > maxKeys {
			return fmt.Errorf("more than %d keys", maxKeys)
		}
		e.set(l)
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case first == "":
		return nil, errors.New("it has no group [" + group + "]")
	case e.Type == "":
		return nil, errors.New("the key Type is missing")
	case e.Name[""] == "":
		return nil, errors.New("the key Name is missing")
	}
	return e, nil
}

func (e *Entry) set(l keyfile.Line) {
	switch l.Key {
	case "Name":
		e.Name.set(l)
	case "Comment":
		e.Comment.set(l)
	case "Keywords":
		if _, known := e.Keywords[l.Locale]; known || len(e.Keywords) < maxLocales {
			e.Keywords[l.Locale] = keyfile.List(l.Value, ';', maxList)
		}
	}
	// A translated icon is for a person who speaks that language, and which
	// one the host's does is not known here.
	if l.Locale != "" {
		return
	}
	switch l.Key {
	case "Type":
		e.Type = keyfile.Unescape(l.Value)
	case "Icon":
		e.Icon = keyfile.Unescape(l.Value)
	case "TryExec":
		e.TryExec = keyfile.Unescape(l.Value)
	case "Exec":
		e.Exec = keyfile.Unescape(l.Value)
	case "Path":
		e.Dir = keyfile.Unescape(l.Value)
	case "StartupWMClass":
		e.WMClass = keyfile.Unescape(l.Value)
	case "NoDisplay":
		setBool(&e.NoDisplay, l.Value)
	case "Hidden":
		setBool(&e.Hidden, l.Value)
	case "Terminal":
		setBool(&e.Terminal, l.Value)
	case "StartupNotify":
		setBool(&e.StartupNotify, l.Value)
	case "MimeType":
		e.MimeTypes = keyfile.List(l.Value, ';', maxList)
	case "Categories":
		e.Categories = keyfile.List(l.Value, ';', maxList)
	case "OnlyShowIn":
		e.OnlyShowIn, e.onlyShowIn = keyfile.List(l.Value, ';', maxList), true
	case "NotShowIn":
		e.NotShowIn = keyfile.List(l.Value, ';', maxList)
	}
}

func (t Text) set(l keyfile.Line) {
	if _, known := t[l.Locale]; known || len(t) < maxLocales {
		t[l.Locale] = keyfile.Unescape(l.Value)
	}
}

// setBool leaves a value alone that is none.
func setBool(to *bool, text string) {
	if v, ok := keyfile.Bool(text); ok {
		*to = v
	}
}
