// A cache of builds behind GOCACHEPROG that keeps entries as files of one directory: the least that such a program does.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sync"
	"time"
)

type request struct {
	ID       int64
	Command  string
	ActionID []byte
	OutputID []byte
	BodySize int64
}

type response struct {
	ID            int64
	Err           string     `json:",omitempty"`
	KnownCommands []string   `json:",omitempty"`
	Miss          bool       `json:",omitempty"`
	OutputID      []byte     `json:",omitempty"`
	Size          int64      `json:",omitempty"`
	Time          *time.Time `json:",omitempty"`
	DiskPath      string     `json:",omitempty"`
}

// entry is what a file "<action>-a" holds; the output is in "<output>-d".
type entry struct {
	OutputID []byte
	Size     int64
	Time     time.Time
}

type store string

func (s store) path(id []byte, kind string) string {
	return filepath.Join(string(s), hex.EncodeToString(id)+kind)
}

func (s store) get(asked request) response {
	raw, err := os.ReadFile(s.path(asked.ActionID, "-a"))
	if err != nil {
		return response{ID: asked.ID, Miss: true}
	}
	var found entry
	if err := json.Unmarshal(raw, &found); err != nil {
		return response{ID: asked.ID, Miss: true}
	}
	path := s.path(found.OutputID, "-d")
	return response{ID: asked.ID, OutputID: found.OutputID, Size: found.Size, Time: &found.Time, DiskPath: path}
}

func (s store) put(asked request, body []byte) response {
	raw, _ := json.Marshal(entry{OutputID: asked.OutputID, Size: asked.BodySize, Time: time.Now()})
	path := s.path(asked.OutputID, "-d")
	for _, file := range []struct {
		path    string
		content []byte
	}{{path, body}, {s.path(asked.ActionID, "-a"), raw}} {
		draft := fmt.Sprintf("%s.%d.%d", file.path, os.Getpid(), asked.ID)
		err := os.WriteFile(draft, file.content, 0o666)
		if err == nil {
			err = os.Rename(draft, file.path)
		}
		if err != nil {
			return response{ID: asked.ID, Err: err.Error()}
		}
	}
	return response{ID: asked.ID, DiskPath: path}
}

func main() {
	files := store(os.Args[1])
	requests := json.NewDecoder(bufio.NewReaderSize(os.Stdin, 1<<16))
	answers := json.NewEncoder(os.Stdout)
	var writing sync.Mutex
	answer := func(said response) {
		writing.Lock()
		defer writing.Unlock()
		if err := answers.Encode(said); err != nil {
			log.Fatal(err)
		}
	}
	answer(response{KnownCommands: []string{"get", "put", "close"}})
	var pending sync.WaitGroup
	for {
		var asked request
		if err := requests.Decode(&asked); err == io.EOF {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		var body []byte
		if asked.Command == "put" && asked.BodySize > 0 {
			var text string
			if err := requests.Decode(&text); err != nil {
				log.Fatal(err)
			}
			var err error
			if body, err = base64.StdEncoding.DecodeString(text); err != nil {
				log.Fatal(err)
			}
		}
		switch asked.Command {
		case "close":
			pending.Wait()
			answer(response{ID: asked.ID})
			return
		case "get", "put":
			pending.Add(1)
			go func() {
				defer pending.Done()
				if asked.Command == "get" {
					answer(files.get(asked))
				} else {
					answer(files.put(asked, body))
				}
			}()
		default:
			answer(response{ID: asked.ID, Err: "unknown command"})
		}
	}
}
