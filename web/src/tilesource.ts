// The levels of a slide for OpenSeadragon: its own pyramid, each level with its own ratio in x and y.

import OpenSeadragon from "openseadragon";
import type { ImageInfo } from "./api";

/** OpenSeadragon counts levels from the coarsest; the server from the finest. */
export function tileSource(caseId: string, image: ImageInfo): OpenSeadragon.TileSource {
  const levels = image.levels ?? [];
  const source = new OpenSeadragon.TileSource({
    width: image.width,
    height: image.height,
    tileSize: 256,
    tileOverlap: 0,
    minLevel: 0,
    maxLevel: levels.length - 1,
  } as OpenSeadragon.TileSourceOptions);
  const of = (level: number) => levels[levels.length - 1 - level];
  const overrides = {
    getLevelScale: (level: number) => 1 / of(level).step[0],
    getTileWidth: (level: number) => of(level).tile[0],
    getTileHeight: (level: number) => of(level).tile[1],
    getNumTiles: (level: number) => {
      const { size, tile } = of(level);
      return new OpenSeadragon.Point(Math.ceil(size[0] / tile[0]), Math.ceil(size[1] / tile[1]));
    },
    getTileAtPoint: (level: number, point: OpenSeadragon.Point) => {
      const { size, tile, step } = of(level);
      const at = (value: number, index: 0 | 1) =>
        Math.max(0, Math.min(Math.floor((value * image.width) / step[index] / tile[index]), Math.ceil(size[index] / tile[index]) - 1));
      return new OpenSeadragon.Point(at(point.x, 0), at(point.y, 1));
    },
    getTileBounds: (level: number, column: number, row: number, isSource?: boolean) => {
      const { size, tile, step } = of(level);
      const width = Math.min(tile[0], size[0] - column * tile[0]);
      const height = Math.min(tile[1], size[1] - row * tile[1]);
      if (isSource) return new OpenSeadragon.Rect(0, 0, width, height);
      const [x, y] = [step[0] / image.width, step[1] / image.width];
      return new OpenSeadragon.Rect(column * tile[0] * x, row * tile[1] * y, width * x, height * y);
    },
    getTileUrl: (level: number, column: number, row: number) =>
      `tiles/${caseId}/${levels.length - 1 - level}/${column}/${row}.jpg?v=${image.version}`,
  };
  return Object.assign(source, overrides);
}

/** A source without tiles, for a result whose slide is not there. */
export function blankSource(image: ImageInfo): OpenSeadragon.TileSource {
  const levels = [{ size: [image.width, image.height], tile: [image.width, image.height], step: [1, 1] }];
  const source = tileSource("", { ...image, levels } as ImageInfo);
  return Object.assign(source, { tileExists: () => false });
}
