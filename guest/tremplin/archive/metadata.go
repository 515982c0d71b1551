package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"go.yaml.in/yaml/v3"
)

const (
	maxMetadata   = 256 << 10 // of metadata.yaml
	maxProperties = 64
	maxProperty   = 1024
	maxCompanions = 1024 // entries beside metadata.yaml in an archive of metadata
)

const metadataName = "metadata.yaml"

// Metadata is what metadata.yaml says, without templates: they would let an
// image have files written by root of the VM.
type Metadata struct {
	Architecture string            `json:"architecture"`
	CreationDate int64             `json:"creation_date"`
	ExpiryDate   int64             `json:"expiry_date,omitempty"`
	Properties   map[string]string `json:"properties,omitempty"`
}

var architectureForm = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)

// ParseMetadata reads a metadata.yaml.
func ParseMetadata(data []byte) (Metadata, error) {
	if len(data) > maxMetadata {
		return Metadata{}, fmt.Errorf("%s is larger than %d bytes", metadataName, maxMetadata)
	}
	var in struct {
		Architecture string         `yaml:"architecture"`
		CreationDate int64          `yaml:"creation_date"`
		ExpiryDate   int64          `yaml:"expiry_date"`
		Properties   map[string]any `yaml:"properties"`
	}
	if err := yaml.Unmarshal(data, &in); err != nil {
		return Metadata{}, fmt.Errorf("%s is not understood: %w", metadataName, err)
	}
	if !architectureForm.MatchString(in.Architecture) {
		return Metadata{}, fmt.Errorf("%s has no architecture, or it is none: %.80q", metadataName, in.Architecture)
	}
	m := Metadata{Architecture: in.Architecture, CreationDate: max(in.CreationDate, 0), ExpiryDate: max(in.ExpiryDate, 0), Properties: map[string]string{}}
	for k, v := range in.Properties {
		value, ok := v.(string)
		if !ok {
			switch v.(type) {
			case int, int64, uint64, float64, bool, time.Time:
				value = fmt.Sprint(v)
			default:
				continue
			}
		}
		if len(m.Properties) < maxProperties && len(k) <= maxProperty && len(value) <= maxProperty && clean(k) && clean(value) {
			m.Properties[k] = value
		}
	}
	return m, nil
}

// clean tells whether a word is fit for people to read.
func clean(s string) bool {
	return strings.ToValidUTF8(s, "") == s && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// encode writes a metadata.yaml; JSON is YAML.
func (m Metadata) encode() ([]byte, error) { return json.MarshalIndent(m, "", "  ") }

// CleanMetadata reads the first of an image's two files and returns it with
// nothing but what Metadata has.
func CleanMetadata(r io.Reader) (io.Reader, error) {
	in, closeIn, err := uncompressed(r)
	if err != nil {
		return nil, err
	}
	defer closeIn()
	entries := tar.NewReader(in)
	for range maxCompanions {
		h, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("it has no %s", metadataName)
		}
		if err != nil {
			return nil, err
		}
		if path.Clean(h.Name) != metadataName {
			continue
		}
		m, err := readMetadata(h, entries)
		if err != nil {
			return nil, err
		}
		return m.archive()
	}
	return nil, fmt.Errorf("it has more than %d entries and no %s among them", maxCompanions, metadataName)
}

func readMetadata(h *tar.Header, r io.Reader) (Metadata, error) {
	if h.Typeflag != tar.TypeReg {
		return Metadata{}, fmt.Errorf("%s is no regular file", metadataName)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxMetadata+1))
	if err != nil {
		return Metadata{}, err
	}
	return ParseMetadata(data)
}

func (m Metadata) archive() (io.Reader, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	t := tar.NewWriter(z)
	err := m.write(t, "")
	if err == nil {
		err = t.Close()
	}
	if err == nil {
		err = z.Close()
	}
	return &b, err
}

// write writes a metadata.yaml with a comment.
func (m Metadata) write(t *tar.Writer, comment string) error {
	data, err := m.encode()
	if err != nil {
		return err
	}
	if comment != "" {
		data = fmt.Appendf(data, "\n# %s\n", comment)
	}
	if err := t.WriteHeader(&tar.Header{Name: metadataName, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err = t.Write(data)
	return err
}
